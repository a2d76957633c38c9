"""Baselines: the most frequent class, and characters that tell the classes apart."""

from collections import Counter
from dataclasses import replace

import pytest

from finetuning.baselines import baseline
from finetuning.splits import Split
from finetuning.tasks import Task

GOOD, BAD = "菜好吃，还会再来", "菜难吃，不会再来"


def split(*pairs, second=None) -> Split:
    examples = [
        {"id": n, "text": text, "text_pair": second, "label": label}
        for n, (text, label) in enumerate(pairs)
    ]
    return Split(examples, (), Counter())


def task(head: str = "classification") -> Task:
    return Task("reviews", head, None, {}, "made up", labels=("0", "1"))


SPLITS = {
    "train": split((GOOD, "1"), (BAD, "0"), (GOOD + "。", "1"), (BAD + "。", "0"), (GOOD, "1")),
    "dev": split(("真好吃", "1"), ("真难吃", "0"), ("不会来", "0")),
    "hidden": split(("好吃得很", None)),
}


def test_majority_answers_the_most_frequent_class_of_train():
    result = baseline("majority", task(), SPLITS)
    assert [answer["label"] for _, answer in result["predictions"]["dev"]] == ["1"] * 3
    assert result["scores"]["dev"]["accuracy"] == pytest.approx(1 / 3)
    assert result["scores"]["dev"]["auc"] == 0.5


def test_characters_tell_the_classes_apart():
    result = baseline("characters", task(), SPLITS)
    assert result["scores"]["dev"]["accuracy"] == 1.0
    assert result["predictions"]["hidden"] == [
        [0, {"label": "1", "score": pytest.approx(0.75, abs=0.25)}]
    ]


def test_characters_see_what_the_texts_of_a_pair_share():
    texts = ("还款", "借钱", "提现", "开户", "转账", "销户")

    def pairs(answers):
        found = split(*((text, answer) for text, answer in answers))
        for example in found.examples:
            same = example["label"] == "1"
            example["text_pair"] = example["text"] if same else "改密码"
        return found

    train = pairs([(text, label) for text in texts for label in "01"] * 2)
    result = baseline("characters", task(), {"train": train, "dev": pairs([("借钱", "1")])})
    assert result["scores"]["dev"]["accuracy"] == 1.0


def test_choices_are_judged_with_their_text():
    def of(question, choices, label):
        example = {"text": "家里没有米了。", "text_pair": question, "choices": choices}
        return {"id": 0, "group": 0, "label": label, **example}

    shop = of("去哪里买？", ["车站", "超市"], 1)
    station = of("去哪里上车？", ["超市", "车站", "家里"], 1)
    first = of("去哪里买？", ["超市", "车站"], 0)
    splits = {
        "train": Split([shop, station, first] * 3, (), Counter()),
        "dev": Split([first, shop], (), Counter()),
    }
    chosen = replace(task("choices"), choices=2, labels=None)
    majority = baseline("majority", chosen, splits)
    assert majority["scores"]["dev"]["accuracy"] == 0.5
    assert [answer for _, answer in majority["predictions"]["dev"]] == [1, 1]
    splits["train"] = Split([shop, first] * 3, (), Counter())
    assert baseline("characters", chosen, splits)["scores"]["dev"]["accuracy"] == 1.0


def test_other_heads_and_names_are_refused():
    with pytest.raises(
        ValueError, match="reviews: the baseline 'majority' knows tasks with classes or"
    ):
        baseline("majority", task("tokens"), SPLITS)
    with pytest.raises(ValueError, match="no baseline 'words'"):
        baseline("words", task(), SPLITS)
