"""Word segmentation: spans fit the text, in both scripts."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.words import segment, word_starts

TEXTS = [
    "下午三点，图书馆门口已经排起了长队。",
    "圖書館門口排起了長隊，大家都很安靜。",
    "佢哋唔係去街市，係去飲茶。",
    "第2步：运行 make test\r\n\r\n看到 100% 就好了👍",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_join_to_the_text(text):
    assert "".join(segment(text)) == text


@given(st.text())
def test_words_of_any_text_join_to_it(text):
    assert "".join(segment(text)) == text


def test_words_are_words():
    assert segment("我们在图书馆看书。") == ["我们", "在", "图书馆", "看书", "。"]


def test_traditional_text_is_cut_like_simplified():
    simplified, traditional = "学生们在图书馆里读书写字", "學生們在圖書館裡讀書寫字"
    assert [len(word) for word in segment(traditional)] == [
        len(word) for word in segment(simplified)
    ]
    assert "圖書館" in segment(traditional)


def test_starts_are_the_offsets_of_words():
    words, starts = segment(TEXTS[0]), word_starts(TEXTS[0])
    assert [
        TEXTS[0][start : start + len(word)] for start, word in zip(starts, words, strict=True)
    ] == (words)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="half a surrogate pair at 1"):
        segment("半\ud800个")


def test_a_missing_segmenter_is_named_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match=r'rjieba: pip install "\.\[train\]"'):
        segment("文字")
