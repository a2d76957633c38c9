"""Encoding for row files: ids as the tokenizer gives them, a bit where a word starts."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from data_collator_wwm import split_row
from pretraining.data.encoding import Encoder
from pretraining.data.tokens import tokenizer_sha256
from pretraining.data.words import Segmenter

TOKENIZER = Path(__file__).parents[3] / "tokenizer.json"

TEXTS = [
    "星期天早上，姐姐在阳台上给番茄浇水。",
    "圖書館每天九點開門，歡迎大家來看書。",
    "佢哋喺茶餐廳飲緊凍檸茶，唔記得咗帶遮。",
    "气温是 23.5 ℃，湿度 60%。\r\n\r\nversion=2.0 见 README.md",
    "生僻字𠀀𪚥和表情👩‍👩‍👧也要编码，一个都不能少。",
    "[MASK] 和 [CLS] 在这里只是文字",
    " ",
]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(TOKENIZER)


def test_ids_are_the_tokenizers(encoder):
    whole = Tokenizer.from_file(str(TOKENIZER))
    whole.encode_special_tokens = True
    for text, encoded in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids, _ = split_row(encoded)
        assert ids.tolist() == whole.encode(text, add_special_tokens=False).ids
        assert encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_a_token_has_the_bit_exactly_where_a_word_starts(encoder):
    for text, encoded in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        _, starts = split_row(encoded)
        offsets = encoder.tokenizer.encode(text, add_special_tokens=False).offsets
        words = set(Segmenter().word_starts(text).tolist())
        seen = set()
        for (begin, _), start in zip(offsets, starts.tolist(), strict=True):
            assert start == (begin in words and begin not in seen)
            seen.add(begin)  # the later bytes of a character share its offset
        assert starts[0]


def test_a_users_token_that_takes_blanks_along_moves_no_word(encoder, tmp_path):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.add_tokens([AddedToken("ＡＢ", lstrip=True, rstrip=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "今天天气好"
    (alone,) = encoder.encode([text])
    (behind,) = Encoder(tmp_path / "tokenizer.json").encode([f"买 ＡＢ  {text}"])
    assert behind[-len(alone) :].tolist() == alone.tolist()


def test_lengths_of_a_texts_tokens_sum_to_the_text(encoder):
    for text, encoded in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids, _ = split_row(encoded)
        assert encoder.lengths[ids].sum() == len(text)


@pytest.fixture
def saved_again(tmp_path) -> Path:
    """The tokenizer as transformers saves it, after a batch that was cut and padded."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER.parent, trust_remote_code=True)
    tokenizer(TEXTS, truncation=True, padding="max_length", max_length=8)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_that_was_saved_again_is_the_same(encoder, saved_again):
    assert saved_again.read_bytes() != TOKENIZER.read_bytes()
    assert tokenizer_sha256(saved_again) == tokenizer_sha256(TOKENIZER)
    again = Encoder(saved_again).encode(TEXTS)
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in encoder.encode(TEXTS)]


@pytest.fixture
def wordpiece(tmp_path) -> Encoder:
    """Of a tokenizer of BERT's kind, which drops blanks and has one [UNK]."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"番茄浇水在阳台上23", "e", "##23"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(entries[:5])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Encoder(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("在阳台上浇番茄", "|在 |阳 台 |上 |浇 |番 茄"),
        ("番茄  浇水\n在 阳台", "|番 茄 |浇 水 |在 |阳 台"),
        ("番茄É23", "|番 茄 |e |##23"),
        ("蹲在阳台", "|[UNK] |在 |阳 台"),
    ],
)
def test_words_start_with_the_tokens_of_a_wordpiece(wordpiece, text, marked):
    (encoded,) = wordpiece.encode([text])
    tokens = [
        "|" * int(start) + wordpiece.tokenizer.id_to_token(index)
        for index, start in zip(*split_row(encoded), strict=True)
    ]
    assert " ".join(tokens) == marked


def test_a_vocabulary_beyond_15_bits_is_refused(tmp_path):
    large = Tokenizer(models.WordLevel({f"t{i}": i for i in range((1 << 15) + 1)}, unk_token="t0"))
    large.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="32769 entries; row files hold ids of 15 bits"):
        Encoder(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        Encoder(tmp_path / "tokenizer.json")


def test_an_unpaired_surrogate_is_refused(encoder):
    with pytest.raises(ValueError, match="unpaired surrogate at 1"):
        encoder.encode(["坏\ud800字"])


def test_an_empty_text_has_no_tokens(encoder, wordpiece):
    for each in (encoder, wordpiece):
        (encoded,) = each.encode([""])
        assert encoded.dtype == np.uint16
        assert len(encoded) == 0
