"""The twin's tokenizer: BERT's, with the entries of a vocabulary file."""

import pytest
from transformers import AutoTokenizer

from experiments.twin.make_tokenizer import read_vocabulary


def test_it_has_the_ids_of_the_file_and_gives_characters_their_own_tokens(twin_workspace):
    tokenizer = AutoTokenizer.from_pretrained(twin_workspace / "tokenizer")
    entries = (twin_workspace / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == entries
    assert tokenizer.tokenize("摊主 给花浇水") == ["[UNK]", "主", "给", "花", "浇", "水"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["[PAD]", "[UNK]", "花", "[CLS]", "花"], "'花' stands there twice"),
        (["[PAD]", "[UNK]", "花"], r"vocab\.txt: \[CLS\], \[SEP\], \[MASK\] missing"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_named(tmp_path, entries, message):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_vocabulary(file)
