"""The official rules of CMRC2018, by cases that the script of its makers decides the same way."""

import pytest

from finetuning.cmrc_rules import exact_match, f1, segments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("《红楼梦》", ["红", "楼", "梦"]),
        ("1986年3月", ["1986", "年", "3", "月"]),
        ("约3.5万、1,200人", ["约", "3.5", "万", "1,200", "人"]),
        ("光荣和ω-Force", ["光", "荣", "和", "ωforce"]),
        ("GPU cards (new).", ["gpu", "cards", "(", "new", ")", "."]),
        ('他说"OK"', ["他", "说", "``", "ok", "''"]),
        ("it's 100%", ["it", "'s", "100", "%"]),
        ("等等…", ["等", "等", "…"]),
        ("，。", []),
    ],
)
def test_text_is_cut_like_the_official_script_cuts_it(text, expected):
    assert segments(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "score"),
    [
        ("南京", ["南京"], 1, 1),
        ("《边城》", ["边城"], 1, 1),  # punctuation does not count
        ("NBA", ["nba"], 1, 1),
        (" 三个月 ", ["三个月"], 1, 1),
        ("南京市", ["南京"], 0, 0.8),
        ("南京", ["上海", "南京市"], 0, 0.8),  # the best of several answers
        ("1986", ["1986年"], 0, 2 / 3),  # a number is one segment
        ("北京和南京", ["南京和北京"], 0, 0.4),  # neighbors only: 南京 or 北京 or 京和
        ("", ["南京"], 0, 0),
        ("上海", ["南京"], 0, 0),
        ("？", ["。"], 1, 0),  # nothing is left: equal, but nothing in common
        ("等等", ["等等…"], 0, 0.8),  # an ellipsis is no punctuation to the script
    ],
)
def test_scores_of_an_answer(prediction, answers, em, score):
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(score)
