"""The tokenizer: nothing is lost, nothing is rewritten, every offset is exact."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pretraining import train_tokenizer
from pretraining.corpus import Document

ROOT = Path(__file__).parent.parent
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
FIRST_BYTE = 69

HOSTILE = {
    "simplified": "今天的雨下得很大，地铁站里挤满了人。",
    "traditional": "圖書館週末開放至晚上九點，歡迎借閱。",
    "cantonese": "佢哋喺度傾偈，唔知幾時先走。",
    "full width": "ＡＢＣ１２３，全角　空格！",
    "half-width kana": "ｶﾀｶﾅ と ひらがな",
    "emoji with joiners": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "line ends": "一\r\n二\n\n三\r四\t五",
    "spaces": "  两个空格  \u3000\u2003 结尾 ",
    "extension B and beyond": "𠀀𪚥𫠝𬺰\U00030000",
    "compatibility ideographs": "豈更車賈滑",
    "private use": "\ue000\uf8ff\U000f0000",
    "combining marks": "e\u0301 n\u0303 か\u3099",
    "control characters": "a\x00b\x07c\x1bd\x7f",
    "bidirectional marks": "\u202eabc\u202c\u200f",
    "byte order mark": "\ufeff开头",
    "lone punctuation": "。，、；：？！…—·",
    "address": "请看 https://example.com/a?b=1&c=2 或写信到 li@example.com",
    "markup": "<p class='x'>段落&nbsp;</p>",
    "like a byte token": "<0x41><0xFF>",
    "like a reserved token": "[unused3]",
    "digits": "2026年11月23日，3.14159",
    "empty": "",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(ROOT), trust_remote_code=True)


def check(tokenizer, text: str) -> None:
    """Nothing unknown, decoding gives the text back, offsets cover it without gap or overlap."""
    encoded = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
    ids = encoded["input_ids"]
    assert (ids[0], ids[-1]) == (SPECIAL["[CLS]"], SPECIAL["[SEP]"])
    assert not set(SPECIAL.values()) & set(ids[1:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    end = 0
    for token, (start, stop) in zip(ids[1:-1], encoded["offset_mapping"][1:-1], strict=True):
        piece = tokenizer.convert_ids_to_tokens(token)
        if token < FIRST_BYTE + 256:  # one of a character's bytes: all have its offsets
            assert stop == start + 1
            assert start in (end, end - 1)
        else:
            assert start == end
            assert text[start:stop] == piece
        end = stop
    assert end == len(text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_survives(tokenizer, text):
    check(tokenizer, text)


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer, text):
    check(tokenizer, text)


def test_the_vocabulary_has_32000_entries_in_a_fixed_layout(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 32_000
    vocabulary = tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in SPECIAL} == SPECIAL
    assert [vocabulary[f"[unused{n}]"] for n in range(64)] == list(range(5, FIRST_BYTE))
    assert vocabulary["<0x00>"] == FIRST_BYTE
    assert vocabulary["<0xFF>"] == FIRST_BYTE + 255
    assert max(len(token) for token, index in vocabulary.items() if index >= 325) <= 16


def test_frequent_words_are_single_tokens(tokenizer):
    for word in ("我们", "图书馆", "可以", "圖書館", "计算机"):
        assert len(tokenizer.tokenize(word)) == 1


def test_a_pair_is_framed_and_told_apart(tokenizer):
    first, second = "天气", "很好"
    ids = tokenizer(first, second)["input_ids"]
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    assert ids == [2, *a, 3, *b, 3]
    assert tokenizer(first, second).sequence_ids() == [
        None,
        *[0] * len(a),
        None,
        *[1] * len(b),
        None,
    ]


def test_a_literal_mask_is_a_mask_unless_split(tokenizer):
    assert 4 in tokenizer("今天[MASK]天")["input_ids"]
    assert 4 not in tokenizer("今天[MASK]天", split_special_tokens=True)["input_ids"]


def test_padding_on_either_side(tokenizer):
    for side in ("left", "right"):
        batch = tokenizer(["短", "长一点的句子"], padding=True, padding_side=side)
        short = batch["attention_mask"][0]
        assert short == sorted(short, reverse=side == "right")
        assert all(len(ids) == len(batch["input_ids"][1]) for ids in batch["input_ids"])
        assert batch["input_ids"][0].count(0) == short.count(0) > 0


def test_a_saved_tokenizer_opens_in_a_fresh_process(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoTokenizer"] == [
        "tokenization_chinese_modernbert.ChineseModernBertTokenizer",
        None,
    ]
    assert not {"is_local", "local_files_only"} & set(config)
    code = (
        "from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained('saved', trust_remote_code=True)\n"
        "text = '𠀀雨後的山路，很滑。'\n"
        "decoded = t.decode(t(text).input_ids, skip_special_tokens=True)\n"
        "print(type(t).__name__, len(t), decoded == text)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["ChineseModernBertTokenizer", "32000", "True"]


# --- training it ------------------------------------------------------------------------------

SENTENCES = [
    "小明每天早上骑自行车去学校。",
    "學校附近有一家賣豆漿的小店。",
    "店主姓陈，待人和气，做事麻利。",
]


def train_small() -> dict:
    documents = [Document(text * 20, "daily", "hans", "test", 1) for text in SENTENCES]
    size = 5 + 64 + 256 + len(train_tokenizer.guaranteed_alphabet()) + 10
    return train_tokenizer.train(documents, size)


def test_training_is_reproducible_and_merges_stay_within_words():
    first, second = train_small(), train_small()
    assert first == second
    words = {token for token in first["model"]["vocab"] if len(token) > 1 and token[0] not in "[<"}
    assert words <= {
        "小明",
        "每天",
        "早上",
        "骑自",
        "自行",
        "行车",
        "自行车",
        "学校",
        "學校",
        "附近",
        "一家",
        "豆漿",
        "小店",
        "店主",
        "待人",
        "人和",
        "和气",
        "待人和气",
        "做事",
        "麻利",
    }
    assert first["model"]["byte_fallback"] is True
    assert [token["content"] for token in first["added_tokens"]] == list(SPECIAL)


def test_too_little_text_for_the_vocabulary_is_refused():
    documents = [Document("太短。", "daily", "hans", "test", 1)]
    with pytest.raises(ValueError, match="entries could be trained; give more text"):
        train_tokenizer.train(documents, 32_000)
