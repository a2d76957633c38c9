"""The tokenizer: nothing is lost, nothing is rewritten, every offset is exact."""

import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from pretraining.tokenizer.training import KINDS

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
    end, spelled = 0, b""
    for token, (start, stop) in zip(ids[1:-1], encoded["offset_mapping"][1:-1], strict=True):
        if token < FIRST_BYTE + 256:  # one of a character's bytes: all have its offsets
            spelled += bytes([token - FIRST_BYTE])
            assert (start, stop) == (end, end + 1)
            if text[start:stop].encode() == spelled:
                end, spelled = stop, b""
        else:
            assert (start, spelled) == (end, b"")
            assert text[start:stop] == tokenizer.convert_ids_to_tokens(token)
            end = stop
    assert (end, spelled) == (len(text), b"")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_survives(tokenizer, text):
    check(tokenizer, text)


def characters(*ranges: tuple[int, int]) -> st.SearchStrategy:
    """A character of one of the ranges of code points, ends included."""
    return st.one_of(
        *(st.characters(min_codepoint=first, max_codepoint=last) for first, last in ranges)
    )


# What breaks tokenizers, a piece at a time.
PIECES = st.one_of(
    st.text(characters((0x4E00, 0x9FFF)), min_size=1, max_size=6),
    st.text(characters((0x20, 0x7E)), min_size=1, max_size=6),
    characters((0xFF00, 0xFFEF), (0x3000, 0x303F)),  # full width, CJK signs
    characters((0x20000, 0x2FA1F), (0x30000, 0x323AF), (0x3400, 0x4DBF)),  # extensions A to H
    characters((0xF900, 0xFAFF), (0x2E80, 0x2FDF)),  # compatibility ideographs, radicals
    characters((0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)),  # private use
    characters((0x300, 0x36F), (0x1AB0, 0x1AFF), (0x3099, 0x309A)),  # combining marks
    characters((0x00, 0x1F), (0x7F, 0x9F)),  # control characters
    characters((0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F)),  # joiners, directions
    characters((0x1F000, 0x1FAFF), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)),  # emoji, variations
    st.sampled_from([*HOSTILE.values(), *SPECIAL, "\r\n", "\ufeff", "\u3000", "\xa0", "…", "——"]),
    st.characters(exclude_categories=["Cs"]),
)


@settings(deadline=None, max_examples=2_500)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=4, max_size=4))
def test_ten_thousand_hostile_texts_survive(tokenizer, texts):
    for text in texts:
        check(tokenizer, text)


def test_a_line_of_a_million_characters_survives(tokenizer):
    text = "".join(HOSTILE.values()) * (1_000_000 // len("".join(HOSTILE.values())) + 1)
    assert len(text) >= 1_000_000
    check(tokenizer, text)
    han = "今天的雨下得很大地铁站里挤满了人" * 62_500
    check(tokenizer, han)


@pytest.mark.parametrize("text", ["張𠮷田", "𠀋𠀍", "㐂在", "👍🏽好", "\ue000\U000f0000"])
def test_tokens_of_a_character_in_bytes_point_at_it(tokenizer, text):
    encoded = tokenizer(text)
    tokens = encoded.tokens()
    for place, character in enumerate(text):
        first = encoded.char_to_token(place)
        count = len(character.encode()) if tokens[first].startswith("<0x") else 1
        for token in range(first, first + count):
            assert tuple(encoded.token_to_chars(token)) == (place, place + 1)
        # Where a text is cut between the bytes, the offsets still name the whole character.
        cut = tokenizer(text, truncation=True, max_length=first + 2, return_offsets_mapping=True)
        assert cut["offset_mapping"][first] == (place, place + 1)
    words = list(text)
    encoded = tokenizer(words, is_split_into_words=True)
    by_word = [word for word in encoded.word_ids() if word is not None]
    assert sorted(by_word) == by_word and set(by_word) == set(range(len(words)))


@pytest.mark.parametrize(
    ("left", "text"),
    [("<0xF0>", "𠮷田"), ("<0xB7>", "𠮷"), ("<0xE4><0xBD>", "㐂"), ("<0xF0><0xA0>", "好\ufffd")],
)
def test_a_broken_character_spoils_none_beside_it(tokenizer, left, text):
    broken = [f"{part}>" for part in left.split(">")[:-1]]
    for tokens, expected in (
        ([*broken, *tokenizer.tokenize(text)], "\ufffd" + text),
        ([*tokenizer.tokenize(text), *broken], text + "\ufffd"),
    ):
        assert tokenizer.convert_tokens_to_string(tokens) == expected
        ids = [2, *tokenizer.convert_tokens_to_ids(tokens), 3]
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected
        assert tokenizer.decode(ids) == f"[CLS]{expected}[SEP]"
        assert tokenizer.decode([ids, ids], skip_special_tokens=True) == [expected] * 2
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids("<0xF0>")) == "\ufffd"


def test_a_text_beyond_the_context_is_encoded_without_a_warning(caplog, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT), trust_remote_code=True)  # warns only once
    text = "今天的雨下得很大，地铁站里挤满了人。" * 1000
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert len(tokenizer(text)["input_ids"]) > 8192
        assert [len(ids) for ids in tokenizer([text, text])["input_ids"]] == [14_002] * 2
        assert len(tokenizer.encode(text, text)) > 16_384
    assert caplog.text == ""
    assert tokenizer.model_max_length == 8192
    assert len(tokenizer(text, truncation=True)["input_ids"]) == 8192


def test_a_new_vocabulary_comes_from_our_own_command(tokenizer):
    with pytest.raises(NotImplementedError, match=r"`python -m pretraining\.train_tokenizer`"):
        tokenizer.train_new_from_iterator([["今天天气很好"]], vocab_size=400)


def test_the_vocabulary_has_32000_entries_in_a_fixed_layout(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 32_000
    vocabulary = tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in SPECIAL} == SPECIAL
    assert [vocabulary[f"[unused{n}]"] for n in range(64)] == list(range(5, FIRST_BYTE))
    assert vocabulary["<0x00>"] == FIRST_BYTE
    assert vocabulary["<0xFF>"] == FIRST_BYTE + 255
    assert max(len(token) for token, index in vocabulary.items() if index >= 325) <= 16


def test_splitting_at_kinds_of_characters_would_change_no_token(tokenizer):
    """Merges stay within a kind, so the tokenizer need not split the text at their borders."""
    kinds = pre_tokenizers.Split(Regex(KINDS), behavior="isolated")
    learned = [token for token, index in tokenizer.get_vocab().items() if index >= 325]
    assert [token for token in learned if len(kinds.pre_tokenize_str(token)) > 1] == []
    splitting = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    splitting.pre_tokenizer = kinds
    splitting.encode_special_tokens = True
    for text in HOSTILE.values():
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert splitting.encode(text).ids == ids


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


def test_word_ids_of_given_words_are_exact(tokenizer):
    words = ["我们", "在", "图书馆", "看", "Python3", "𠀀", "。"]
    encoded = tokenizer(words, is_split_into_words=True)
    parts = {}
    for token, word in zip(encoded["input_ids"], encoded.word_ids(), strict=True):
        if word is not None:
            parts.setdefault(word, []).append(token)
    assert [tokenizer.decode(parts[index]) for index in range(len(words))] == words


def test_words_come_with_their_spans(tokenizer):
    text = "我们在圖書館看 Python 书。"
    words = tokenizer.segment(text)
    assert [word for word, _, _ in words] == [
        *("我们", "在", "圖書館", "看", " ", "Python", " ", "书", "。")
    ]
    assert all(text[start:end] == word for word, start, end in words)
    assert words[0][1] == 0
    assert words[-1][2] == len(text)
    assert all(left[2] == right[1] for left, right in itertools.pairwise(words))


@pytest.mark.parametrize("package", ["rjieba", "opencc"])
def test_a_missing_segmenter_is_named_with_what_to_install(tokenizer, monkeypatch, package):
    module = sys.modules[type(tokenizer).__module__]
    module._simplified_characters.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install rjieba opencc"):
        tokenizer.segment("文字")


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
    before = dict(tokenizer.init_kwargs)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer.init_kwargs == before  # `datasets` would tokenize everything anew
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
