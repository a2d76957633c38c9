"""Baselines that need no weights: the most frequent answer, and a bag of characters.

Both take the same splits as a model and give the same kind of result. They know tasks with classes
and with choices, not those whose answers are parts of the text.
"""

import time
from collections import Counter
from collections.abc import Callable

from finetuning.heads import HEADS
from finetuning.splits import Split
from finetuning.tasks import Task

MAJORITY, CHARACTERS = "majority", "characters"
BASELINES = (MAJORITY, CHARACTERS)
BASELINE_HEADS = ("classification", "choices")
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # the grid of the inverse of the regularization


def baseline(name: str, task: Task, splits: dict[str, Split]) -> dict:
    """Scores a baseline on every labeled split but train.

    Args:
        name: "majority", the most frequent class of train, or place among the choices; or
            "characters", logistic regression on characters and pairs of neighbors, weighted by
            tf-idf. The two texts of a pair have features of their own, and those of both, so that
            what they share can be seen. A choice and its text are a pair, right or wrong.

    Returns:
        A result as `finetuning.training.train` gives it.

    Raises:
        ValueError: if the task has another head, or on an unknown name.
    """
    if task.head not in BASELINE_HEADS:
        raise ValueError(
            f"{task.name}: the baseline {name!r} knows tasks with classes or choices only; leave "
            "it out here."
        )
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}.")
    began = time.perf_counter()
    examples = {part: split.examples for part, split in splits.items()}
    score = HEADS[task.head].score

    def merit(of_dev: list) -> float:
        return score(examples["dev"], of_dev)[task.metric]

    if name == MAJORITY:
        found = _majority(examples, task.head)
    elif task.head == "choices":
        found = _choose(examples, merit)
    else:
        found = _characters(examples, _features, merit)
    scores = {part: score(examples[part], found[part]) for part in found if part != "hidden"}
    return {
        "scores": scores,
        "inexact": {},
        "seconds": round(time.perf_counter() - began, 1),
        "predictions": {
            part: [
                [example["id"], answer]
                for example, answer in zip(splits[part].examples, answers, strict=True)
            ]
            for part, answers in found.items()
        },
    }


def _majority(examples: dict[str, list[dict]], head: str) -> dict[str, list]:
    counts = Counter(example["label"] for example in examples["train"])
    label, count = counts.most_common(1)[0]
    answer = label if head == "choices" else {"label": label, "score": count / counts.total()}
    return {part: [answer] * len(those) for part, those in examples.items() if part != "train"}


def _choose(examples: dict[str, list[dict]], merit: Callable) -> dict[str, list[int]]:
    """The place of the choice that is right most probably."""

    def chosen(part: str, answers: list[dict]) -> list[int]:
        right = iter(a["score"] if a["label"] == "1" else 1 - a["score"] for a in answers)
        chances = [[next(right) for _ in example["choices"]] for example in examples[part]]
        return [max(range(len(those)), key=those.__getitem__) for those in chances]

    pairs = {
        part: [
            {
                "text": example["text"] + (example["text_pair"] or ""),
                "text_pair": choice,
                "label": "1" if place == example["label"] else "0",
            }
            for example in those
            for place, choice in enumerate(example["choices"])
        ]
        for part, those in examples.items()
    }
    found = _characters(pairs, _choice_features, lambda answers: merit(chosen("dev", answers)))
    return {part: chosen(part, answers) for part, answers in found.items()}


def _characters(
    examples: dict[str, list[dict]], features_of: Callable, merit: Callable
) -> dict[str, list[dict]]:
    """Answers of the regularization whose answers on dev have the highest `merit`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=features_of, sublinear_tf=True, min_df=2)
    train = vectorizer.fit_transform(examples["train"])
    labels = [example["label"] for example in examples["train"]]
    vectors = {
        part: vectorizer.transform(those) for part, those in examples.items() if part != "train"
    }

    def answers(model, part: str) -> list[dict]:
        return [
            {"label": str(model.classes_[row.argmax()]), "score": float(row.max())}
            for row in model.predict_proba(vectors[part])
        ]

    models = [LogisticRegression(C=C, max_iter=1000).fit(train, labels) for C in _STRENGTHS]
    best = max(models, key=lambda model: merit(answers(model, "dev")))
    return {part: answers(best, part) for part in vectors}


def _features(example: dict) -> list[str]:
    """Characters and pairs of neighbors of an example's texts."""
    first = _grams(example["text"])
    if example["text_pair"] is None:
        return first
    second = _grams(example["text_pair"])
    shared = Counter(first) & Counter(second)
    return [
        *(f"1 {gram}" for gram in first),
        *(f"2 {gram}" for gram in second),
        *(f"both {gram}" for gram in shared.elements()),
    ]


def _choice_features(pair: dict) -> list[str]:
    """Those that tell the choices of a text apart."""
    return [feature for feature in _features(pair) if not feature.startswith("1 ")]


def _grams(text: str) -> list[str]:
    return [*text, *(text[index : index + 2] for index in range(len(text) - 1))]
