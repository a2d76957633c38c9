"""Sentences: where they end, and that nothing but white space lies between them."""

import pytest

from corpora import TEXTS, many_texts
from pretraining.data.sentences import passages_of, sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("雨停了。路还是湿的！要带伞吗？", ["雨停了。", "路还是湿的！", "要带伞吗？"]),
        ("米要淘两遍；水要没过手背。", ["米要淘两遍；", "水要没过手背。"]),
        ("他等了很久……门终于开了", ["他等了很久……", "门终于开了"]),
        ("怎么会这样？！！我不信。。。算了吧。", ["怎么会这样？！！", "我不信。。。", "算了吧。"]),
        # Marks of ASCII, after Chinese characters alone.
        ("今天去吗?可以去!地址在这.", ["今天去吗?", "可以去!", "地址在这."]),
        ("版本是3.14，见example.com/?q=1!好的", ["版本是3.14，见example.com/?q=1!好的"]),
        # Quotation marks and brackets that close belong to the sentence.
        ("“水开了。”奶奶在里屋喊。", ["“水开了。”", "奶奶在里屋喊。"]),
        ("（门没有锁。）「進來吧！」他說完了。", ["（门没有锁。）", "「進來吧！」", "他說完了。"]),
        ("“他说‘明天再来吧。’”我没有回答。", ["“他说‘明天再来吧。’”", "我没有回答。"]),
        ('"面好了。"她喊道。"快来吃面。"', ['"面好了。"', "她喊道。", '"快来吃面。"']),
        ('他推门进来了。"外面真冷。"', ["他推门进来了。", '"外面真冷。"']),
        # A sentence that goes on after a quotation.
        ("“这么早！”，他揉着眼睛说。", ["“这么早！”，他揉着眼睛说。"]),
        ('"这么早！"，他揉着眼睛说。', ['"这么早！"，他揉着眼睛说。']),
        ("窗外一片漆黑\n，只有雨声。", ["窗外一片漆黑\n，只有雨声。"]),
        # Lines: turns of a dialogue, titles, verses.
        ("买票吗\r\n买两张\n\n　　靠窗的座位", ["买票吗\r\n买两张", "靠窗的座位"]),
        ("甲：你到哪里了\n乙：还在路上", ["甲：你到哪里了", "乙：还在路上"]),
        # What is shorter than four characters joins its neighbor.
        ("嗯。我知道了。", ["嗯。我知道了。"]),
        ("我知道了。好。那就这样吧。", ["我知道了。好。", "那就这样吧。"]),
        ("好", ["好"]),
        ("  \n", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(text, expected):
    assert sentences(text) == expected


def test_nothing_but_white_space_lies_between_sentences():
    texts = [*TEXTS, *many_texts(20), ' 。”\n\n……好。”“\u2028走（。 ）"。"\t，\r嗯']
    for text in texts:
        at = 0
        for start, end in sentence_spans(text):
            assert not text[at:start].strip()
            assert text[start:end] == text[start:end].strip() != ""
            at = end
        assert not text[at:].strip()


def test_passages_are_whole_sentences_as_many_as_fit():
    assert passages_of("今天下雨了。我们在家看书。明天去河边。", 13) == [
        "今天下雨了。我们在家看书。",
        "明天去河边。",
    ]
    assert passages_of("一" * 25 + "。" + "今天下雨了。", 10) == [
        "一" * 10,
        "一" * 10,
        "一" * 5 + "。",
        "今天下雨了。",
    ]
    assert passages_of(" \t", 10) == []
