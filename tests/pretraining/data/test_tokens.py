"""A tokenizer's entries, and telling one tokenizer from another."""

import json

import pytest
from tokenizers import Tokenizer, models

from corpora import TOKENIZER
from pretraining.data.tokens import (
    first_ordinary_id,
    open_tokenizer,
    special_token_ids,
    token_lengths,
    token_spellings,
    tokenizer_sha256,
)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TOKENIZER)


def test_ordinary_ids_follow_special_reserved_and_byte_tokens(tokenizer):
    assert first_ordinary_id(tokenizer) == 5 + 64 + 256


def test_special_tokens_have_the_ids_of_the_vocabulary(tokenizer):
    assert special_token_ids(tokenizer) == {"cls_id": 2, "sep_id": 3, "pad_id": 0, "mask_id": 4}


def test_lengths_count_characters(tokenizer):
    lengths = token_lengths(tokenizer)
    assert (lengths[:5] == 0).all()
    first_bytes = {token: lengths[tokenizer.token_to_id(token)] for token in ("<0x41>", "<0xE4>")}
    assert first_bytes == {"<0x41>": 1, "<0xE4>": 1}
    assert lengths[tokenizer.token_to_id("<0x80>")] == lengths[tokenizer.token_to_id("<0xBF>")] == 0
    assert lengths[tokenizer.token_to_id("我们")] == 2


def test_tokens_spell_text_or_the_first_byte_of_a_character(tokenizer):
    spellings = token_spellings(tokenizer)
    wanted = {"我们": "我们", "<0x41>": "A", "<0xE4>": "\udce4", "<0x80>": "", "[MASK]": ""}
    assert {token: spellings[tokenizer.token_to_id(token)] for token in wanted} == wanted


def test_a_tokenizer_of_other_merges_is_another(tmp_path):
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert tokenizer_sha256(tmp_path / "tokenizer.json") != tokenizer_sha256(TOKENIZER)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a JSON file"):
        tokenizer_sha256(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_byte_tokens_is_refused():
    other = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"no token <0xFF>, so no byte fallback; train one"):
        first_ordinary_id(other)
    with pytest.raises(ValueError, match=r"special tokens \['\[CLS\]', .* are missing"):
        special_token_ids(other)


def test_a_token_that_a_user_added_stands_for_its_text():
    own = open_tokenizer(TOKENIZER)
    own.add_tokens(["长江大桥头"])
    assert token_lengths(own)[own.token_to_id("长江大桥头")] == 5
    other = Tokenizer(models.WordPiece({"[UNK]": 0, "花": 1}, unk_token="[UNK]"))
    other.add_special_tokens(["[UNK]"])
    other.add_tokens(["桥头"])
    assert first_ordinary_id(other) == 1


def test_in_a_wordpiece_text_follows_the_special_tokens():
    entries = ["[PAD]", "花", "[UNK]", "ing", "##ing"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    other = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    other.add_special_tokens(["[PAD]", "[UNK]"])
    assert first_ordinary_id(other) == 3
    assert token_spellings(other) == ["", "花", "", "ing", "ing"]
    other.add_special_tokens(["[订单]"])  # a user's, at the end
    assert first_ordinary_id(other) == 3
    vocabulary = {"花": 0, "[UNK]": 1}
    last = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    last.add_special_tokens(["[UNK]"])
    with pytest.raises(ValueError, match=r"special tokens are the last entries"):
        first_ordinary_id(last)
    with pytest.raises(ValueError, match=r"no token <0xFF>"):
        first_ordinary_id(Tokenizer(models.WordPiece({"花": 0}, unk_token="花")))
