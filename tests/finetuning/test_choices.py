"""Choices: rows of pairs or of filled blanks, and the answers that suit all blanks together."""

import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer, DataCollatorForMultipleChoice

from finetuning.choice_data import BLANK, OTHER_BLANK
from finetuning.choices import ChoiceSettings, assign, cut_around, decode, features

IDIOMS = ["一举两得", "井井有条", "半途而废"]


def question(choices=("车上", "家里", "店里"), label: int | None = 0, text="还有十分钟到站。"):
    return {
        "id": "Q",
        "group": "P",
        "text": text,
        "text_pair": "他在哪儿？",
        "choices": list(choices),
        "label": label,
    }


def blank(text: str, group=0, label: int | None = 0) -> dict:
    return {
        "id": "B",
        "group": group,
        "text": text,
        "text_pair": None,
        "choices": IDIOMS,
        "label": label,
    }


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(".", trust_remote_code=True)


def texts_of(row: dict, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in row["input_ids"]]


def test_a_question_is_read_with_each_choice(tokenizer):
    [row], decoding = features([question()], tokenizer, ChoiceSettings(4), training=True)
    assert texts_of(row, tokenizer) == [
        "[CLS]还有十分钟到站。[SEP]他在哪儿？车上[SEP]",
        "[CLS]还有十分钟到站。[SEP]他在哪儿？家里[SEP]",
        "[CLS]还有十分钟到站。[SEP]他在哪儿？店里[SEP]",
        "[CLS][SEP][SEP]",
    ]
    assert row["labels"] == 0
    assert not decoding.inexact
    # An empty choice is never the answer, whatever the model says.
    assert decode([[0.0, 2.0, 1.0, 9.0]], decoding) == [1]


def test_a_blank_is_filled_with_each_choice(tokenizer):
    example = blank(f"做事{OTHER_BLANK}，书架{BLANK}。")
    [row], _ = features([example], tokenizer, ChoiceSettings(3, blanks=True), training=True)
    masks = "[MASK]" * 4
    assert texts_of(row, tokenizer) == [
        f"[CLS]做事{masks}，书架{idiom}。[SEP]{idiom}[SEP]" for idiom in IDIOMS
    ]


def test_long_texts_are_cut_and_counted(tokenizer):
    far, near = "很久以前，" * 30, "书架"
    settings = ChoiceSettings(3, max_length=24, blanks=True)
    rows, decoding = features(
        [blank(f"{far}{near}{BLANK}，{far}"), blank(f"{near}{BLANK}。")],
        tokenizer,
        settings,
        training=True,
    )
    assert all(
        f"{near}{idiom}，" in t
        for t, idiom in zip(texts_of(rows[0], tokenizer), IDIOMS, strict=True)
    )
    assert {len(ids) for ids in rows[0]["input_ids"]} == {24}
    assert decoding.inexact == {"text is cut": 1}
    [row], decoding = features([question(text=far)], tokenizer, ChoiceSettings(3, 20), True)
    assert all(
        t.startswith("[CLS]很久以前，") and "他在哪儿？" in t for t in texts_of(row, tokenizer)
    )
    assert {len(ids) for ids in row["input_ids"]} == {20}
    assert decoding.inexact == {"text is cut": 1}


@pytest.mark.parametrize(
    ("left", "right", "room", "kept"),
    [
        (10, 10, 8, (4, 4)),
        (10, 10, 9, (4, 5)),
        (2, 10, 8, (2, 6)),
        (10, 1, 8, (7, 1)),
        (2, 3, 8, (2, 3)),
    ],
)
def test_what_one_side_of_a_blank_does_not_need_goes_to_the_other(left, right, room, kept):
    assert cut_around(left, right, room) == kept


def test_rows_fit_the_collator_of_transformers(tokenizer):
    examples = [question(), question(("是", "不是"), label=None)]
    rows, _ = features(examples, tokenizer, ChoiceSettings(4), training=False)
    batch = DataCollatorForMultipleChoice(tokenizer)(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4, 13)
    assert batch["labels"].tolist() == [0, -100]


def test_a_question_that_is_not_trained_on_may_have_more_choices_than_the_task(tokenizer):
    examples = [question(), question("甲乙丙丁戊", label=None)]
    rows, decoding = features(examples, tokenizer, ChoiceSettings(4), training=False)
    assert [len(row["input_ids"]) for row in rows] == [5, 5]
    assert decode([[0, 1, 0, 2, 3], [0, 1, 0, 2, 3]], decoding) == [1, 4]


@pytest.mark.parametrize(
    ("example", "settings", "message"),
    [
        (question(label=None), ChoiceSettings(3), "'Q' has no label"),
        (question(), ChoiceSettings(2), "'Q' has 3 choices, the task 2"),
        (question(), ChoiceSettings(3, max_length=6), "'Q': .* leaves no room for the text in 6"),
        (blank("没有空"), ChoiceSettings(3, blanks=True), "'B': .* it holds 0"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tokenizer, example, settings, message):
    with pytest.raises(ValueError, match=message):
        features([example], tokenizer, settings, training=True)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_an_assignment_is_the_best_of_all(rows):
    for scores in np.random.default_rng(rows).normal(size=(20, rows, 5)):
        best = max(
            itertools.permutations(range(5), rows),
            key=lambda picks: sum(scores[np.arange(rows), list(picks)]),
        )
        assert assign(scores) == list(best)


def test_blanks_of_a_group_are_answered_together_and_questions_are_not(tokenizer):
    scores = [[5.0, 4.0, 0.0], [3.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    texts = [f"做事{BLANK}。", f"家里{BLANK}。", f"这样{BLANK}。"]
    examples = [blank(text, group) for text, group in zip(texts, (0, 0, 1), strict=True)]
    _, decoding = features(examples, tokenizer, ChoiceSettings(3, blanks=True), training=False)
    assert decode(scores, decoding) == [1, 0, 0]  # 4 + 3 beats 5 + 1
    _, decoding = features([question()] * 3, tokenizer, ChoiceSettings(3), training=False)
    assert decode(scores, decoding) == [0, 0, 0]
