"""Word segmentation: spans fit the text, in both scripts."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.data.words import Segmenter, crosses_border
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

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


@settings(deadline=None)  # the first call reads a table
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


def test_an_unpaired_surrogate_is_refused():
    with pytest.raises(ValueError, match="unpaired surrogate at 1"):
        segmenter.segment("半\ud800个")


def test_the_tokenizer_cuts_a_text_into_the_same_words():
    tokenizer = ChineseModernBertTokenizer.from_pretrained(Path(__file__).parents[3])
    for text in TEXTS:
        assert [word for word, _, _ in tokenizer.segment(text)] == segmenter.segment(text)


def test_a_span_crosses_a_border_if_a_word_begins_inside_it():
    starts = np.array([0, 2, 3])  # 豆浆 + 和 + 油条
    spans = [(0, 2), (0, 3), (1, 3), (2, 3), (2, 4), (3, 5), (1, 1), (2, 2), (0, 5)]
    first, end = np.array(spans).T
    crosses = crosses_border(starts, first, end)
    assert crosses.tolist() == [False, True, True, False, True, False, False, False, True]


# --- user dictionaries ------------------------------------------------------------------------


@pytest.fixture
def with_words(tmp_path):
    """Returns `with_words(content)`: a segmenter with a dictionary of this content."""

    def build(content: str | bytes) -> Segmenter:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "words.txt").write_bytes(content)
        return Segmenter(tmp_path / "words.txt")

    return build


@pytest.mark.parametrize(
    "line",
    [
        *("云端豆浆机", "云端豆浆机 1000", "云端豆浆机 nz", "云端豆浆机 1000 nz"),
        *(
            "云端豆浆机\t1000\tnz",
            "  云端豆浆机  1000  ",
            "云端豆浆机\u30001000",
            "云端豆浆机 １０００",
        ),
        *("雲端豆漿機 nz", "\ufeff云端豆浆机", "云端豆浆机 1000 nz\r", "云端豆浆机\n云端豆浆机"),
    ],
)
def test_jiebas_forms_of_a_line_make_a_word_in_both_scripts(with_words, line):
    own = with_words(f"\n{line}\n\n  \n桂花糯米藕 n\n")
    for text, words in (
        ("他买了云端豆浆机。", ["他", "买", "了", "云端豆浆机", "。"]),
        ("他買了雲端豆漿機。", ["他", "買", "了", "雲端豆漿機", "。"]),
    ):
        assert segmenter.segment(text) != words
        assert own.segment(text) == words
    assert "桂花糯米藕" in own.segment("点了一份桂花糯米藕。")
    assert own.unused_words() == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        *[(word, word) for word in ("《河边》", "哎，别走", "阿布·小麦", "αβ粒子", "カメラ店")],
        *[
            (word, word)
            for word in ("ＡＢＣ大学", "👍顶", "顶👍", "½杯", "𰻝𰻝面", "New York", "#1 店")
        ],
        *[
            (word, word)
            for word in ("C++语言", ".NET", "A-B_C", "3.5版", "第1", "今天\u3000好", "#1 店")
        ],
        *[("机器 学习 5 n", "机器 学习"), ("机器 学习 n", "机器 学习"), ("机器 学习", "机器 学习")],
        *[("machine learning 5", "machine learning"), ("Windows 11 5", "Windows 11")],
        *[("《河边》 1", "《河边》"), ("阿布·小麦 nr", "阿布·小麦"), ("ice 9 x", "ice")],
    ],
)
def test_every_word_has_an_effect(with_words, line, word):
    own = with_words(line)
    text = f"他说{word}了。"
    assert own.segment(text) == ["他", "说", word, "了", "。"]
    assert "".join(own.segment(f"{word}{word}")) == word * 2
    assert own.unused_words() == []


def test_words_that_rjieba_splits_match_in_both_scripts(with_words):
    own = with_words("約翰·小麦\n《红楼》\n")
    assert own.segment("见约翰·小麥，看《紅樓》") == ["见", "约翰·小麥", "，", "看", "《紅樓》"]


def test_the_first_and_longest_of_the_words_that_rjieba_splits_wins(with_words):
    own = with_words("《河边》\n读《河边》记\n河边》的\n记，走\n，走\n")
    assert own.segment("读《河边》记，走") == ["读《河边》记", "，走"]
    assert own.segment("看《河边》的") == ["看", "《河边》", "的"]
    assert own.segment("在河边》的") == ["在", "河边》的"]


def test_a_word_is_not_found_inside_a_number_or_a_word_of_an_alphabet(with_words):
    own = with_words("New York\n2·0版\nβ 粒\nカ店\n")
    for text in ("去New Yorker吧", "在inNew York", "用12·0版", "说αβ 粒"):
        assert own.segment(text) == segmenter.segment(text)
    assert own.segment("去New York吧") == ["去", "New York", "吧"]
    assert own.segment("用2·0版") == ["用", "2·0版"]
    assert "カ店" in own.segment("アカ店")  # kana are written without blanks


def test_a_frequency_of_nought_takes_a_word_out(with_words):
    own = with_words("自行车 0\n《河边》\n《河边》 0\n")
    assert "自行车" in segmenter.segment("我骑自行车去")
    assert "自行车" not in own.segment("我骑自行车去")
    assert own.segment("看《河边》") == segmenter.segment("看《河边》")
    assert own.unused_words() == []


def test_a_word_without_effect_is_named_with_what_would_give_it_one(with_words):
    own = with_words("桂花糯米藕\n的了 1\n我们在 5 v\n")
    messages = own.unused_words()
    assert ["的了" in own.segment("好的了"), len(messages)] == [False, 2]
    found = [re.search(r"words\.txt, line (\d): '(.*)' .* give (\d+) or none", m) for m in messages]
    assert [each[1] for each in found] == ["2", "3"]
    enough = with_words("".join(f"{each[2]} {each[3]}\n" for each in found))
    assert enough.segment("的了") == ["的了"]
    assert enough.segment("我们在") == ["我们在"]
    assert enough.unused_words() == []


def test_an_ordinary_dictionary_changes_no_other_text(with_words):
    own = with_words("云端豆浆机\n阿布·小麦\n")
    for text in TEXTS:
        assert own.segment(text) == segmenter.segment(text)


@pytest.fixture(scope="module")
def split_words(tmp_path_factory):
    file = tmp_path_factory.mktemp("dictionary") / "words.txt"
    file.write_text("《河边》\n读《河\n河边·α\nNew Ab\n，读\n", encoding="utf-8")
    return Segmenter(file)


@settings(deadline=None)
@given(st.text("读《河边》·α New Ab1，", max_size=30))
def test_words_join_to_the_text_with_a_dictionary_of_overlapping_words(split_words, text):
    assert "".join(split_words.segment(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("豆浆\nmachine learning\n", r"line 2: 'machine learning' can be the word .* 'machine"),
        ("豆浆\n\nice cream\n", r"line 3: 'ice cream' .* such as 'ice cream 5' or 'ice 5 cream'"),
        ("豆浆\nNew york", r"line 2: 'New york' can be"),
        ("豆浆\n豆花 10000000000000 n", r"line 2: the frequency 10000000000000 is too large"),
        ("豆浆".encode("gb18030"), r"words\.txt: not UTF-8"),
        ("豆浆".encode("utf-16"), r"words\.txt: UTF-16, not UTF-8; convert .* iconv -f UTF-16"),
    ],
)
def test_what_a_dictionary_cannot_mean_is_named(with_words, content, message):
    with pytest.raises(ValueError, match=message):
        with_words(content)


def test_a_missing_segmenter_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match=r'rjieba: pip install "\.\[train\]"'):
        Segmenter()
