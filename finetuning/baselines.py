"""Baselines that need no weights: the most frequent class, and a bag of characters.

Both take the same splits as a model and give the same kind of result. They know tasks with classes
only.
"""

import time
from collections import Counter

from finetuning.heads import HEADS
from finetuning.splits import Split
from finetuning.tasks import Task

MAJORITY, CHARACTERS = "majority", "characters"
BASELINES = (MAJORITY, CHARACTERS)
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # the grid of the inverse of the regularization


def baseline(name: str, task: Task, splits: dict[str, Split]) -> dict:
    """Scores a baseline on every labeled split but train.

    Args:
        name: "majority", the most frequent class of train; or "characters", logistic regression on
            characters and pairs of neighbors, weighted by tf-idf. The two texts of a pair have
            features of their own, and those of both, so that what they share can be seen.

    Returns:
        A result as `finetuning.training.train` gives it.

    Raises:
        ValueError: if the task's head is no classification, or on an unknown name.
    """
    if task.head != "classification":
        raise ValueError(
            f"{task.name}: the baseline {name!r} knows tasks with classes only; leave it out here."
        )
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}.")
    began = time.perf_counter()
    predict = _majority if name == MAJORITY else _characters
    found = predict({part: split.examples for part, split in splits.items()})
    scores = {
        part: HEADS[task.head].score(splits[part].examples, found[part])
        for part in found
        if part != "hidden"
    }
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


def _majority(examples: dict[str, list[dict]]) -> dict[str, list[dict]]:
    counts = Counter(example["label"] for example in examples["train"])
    label, count = counts.most_common(1)[0]
    answer = {"label": label, "score": count / counts.total()}
    return {part: [answer] * len(those) for part, those in examples.items() if part != "train"}


def _characters(examples: dict[str, list[dict]]) -> dict[str, list[dict]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=_features, sublinear_tf=True, min_df=2)
    train = vectorizer.fit_transform(examples["train"])
    labels = [example["label"] for example in examples["train"]]
    vectors = {
        part: vectorizer.transform(those) for part, those in examples.items() if part != "train"
    }
    right = [example["label"] for example in examples["dev"]]
    models = [LogisticRegression(C=C, max_iter=1000).fit(train, labels) for C in _STRENGTHS]
    best = max(models, key=lambda model: model.score(vectors["dev"], right))
    answers = {}
    for part, features in vectors.items():
        probabilities = best.predict_proba(features)
        answers[part] = [
            {"label": str(best.classes_[row.argmax()]), "score": float(row.max())}
            for row in probabilities
        ]
    return answers


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


def _grams(text: str) -> list[str]:
    return [*text, *(text[index : index + 2] for index in range(len(text) - 1))]
