"""Word segmentation: spans fit the text, in both scripts."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.data.words import Segmenter

TEXTS = [
    "下午三点，图书馆门口已经排起了长队。",
    "圖書館門口排起了長隊，大家都很安靜。",
    "佢哋唔係去街市，係去飲茶。",
    "第2步：运行 make test\r\n\r\n看到 100% 就好了👍",
    "",
]
segmenter = Segmenter()


@pytest.mark.parametrize("text", TEXTS)
def test_words_join_to_the_text(text):
    assert "".join(segmenter.segment(text)) == text


@given(st.text())
def test_words_of_any_text_join_to_it(text):
    assert "".join(segmenter.segment(text)) == text


def test_words_are_words():
    assert segmenter.segment("我们在图书馆看书。") == ["我们", "在", "图书馆", "看书", "。"]


def test_traditional_text_is_cut_like_simplified():
    simplified, traditional = "学生们在图书馆里读书写字", "學生們在圖書館裡讀書寫字"
    assert [len(word) for word in segmenter.segment(traditional)] == [
        len(word) for word in segmenter.segment(simplified)
    ]
    assert "圖書館" in segmenter.segment(traditional)


def test_starts_are_the_offsets_of_words():
    words, starts = segmenter.segment(TEXTS[0]), segmenter.word_starts(TEXTS[0])
    assert [
        TEXTS[0][start : start + len(word)] for start, word in zip(starts, words, strict=True)
    ] == (words)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="half a surrogate pair at 1"):
        segmenter.segment("半\ud800个")


def test_a_users_words_are_words_in_both_scripts(tmp_path):
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("云端豆浆机 1000 n\n\n桂花糯米藕\n", encoding="utf-8")
    own = Segmenter(dictionary)
    for text, word in (
        ("他买了云端豆浆机。", "云端豆浆机"),
        ("他買了雲端豆漿機。", "雲端豆漿機"),
        ("点了一份桂花糯米藕。", "桂花糯米藕"),
    ):
        assert word not in segmenter.segment(text)
        assert word in own.segment(text)


@pytest.mark.parametrize("line", ["糯米藕 many", "糯 米 藕", "糯米藕 1 n extra"])
def test_a_bad_line_of_a_dictionary_is_named(tmp_path, line):
    (tmp_path / "words.txt").write_text(f"豆浆\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.txt, line 2: .* is not 'word'"):
        Segmenter(tmp_path / "words.txt")


def test_a_missing_segmenter_is_named_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match=r'rjieba: pip install "\.\[train\]"'):
        Segmenter()
