"""The kinds of heads: which Auto class, how examples become inputs, outputs answers and scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from finetuning import answers, choices, classification, entities
from finetuning.metrics import Accuracy, AnswerScores, BinaryF1AndAuc, EntityF1, character_tags
from finetuning.tasks import Task


@dataclass(frozen=True)
class Head:
    """A kind of head.

    Attributes:
        auto: the Auto class that opens a model with it.
        collator: the collator of its rows, made from a tokenizer.
        settings: the settings of `features` for a task.
        classes: the names of the model's outputs under these settings; None if they have none.
        features: (examples, tokenizer, settings, training) -> (rows, decoding).
        decode: (logits, decoding) -> predictions, in the words of the examples.
        score: (examples, predictions) -> values from 0 to 1 by name.
        outputs: the model's outputs that `decode` takes.
        by_token: whether they stand for tokens, whose places padding on the left would move.
        present: (example, prediction) -> the prediction as it is kept and shown.
    """

    auto: type
    collator: type
    settings: Callable
    classes: Callable
    features: Callable
    decode: Callable
    score: Callable[[list[dict], list], dict[str, float]]
    outputs: tuple[str, ...] = ("logits",)
    by_token: bool = False
    present: Callable = lambda example, prediction: prediction

    def collator_of(self, tokenizer):
        """The collator of rows that this tokenizer made."""
        if self.by_token:
            tokenizer.padding_side = "right"
        return self.collator(tokenizer)

    def decode_rows(self, rows: list[tuple[np.ndarray, ...]], decoding) -> list:
        """Predictions from the outputs of each row, a tuple by `outputs`.

        Outputs of a run that diverged, which are not finite, become numbers that can be scored.
        """
        columns = [list(map(np.nan_to_num, column)) for column in zip(*rows, strict=True)]
        return self.decode(columns[0] if len(self.outputs) == 1 else columns, decoding)


def _compute(metric: type, **columns) -> dict[str, float]:
    return metric(keep_in_memory=True).compute(**columns)


def _score_classes(examples, predictions) -> dict[str, float]:
    right = [example["label"] for example in examples]
    found = [prediction["label"] for prediction in predictions]
    scores = _compute(Accuracy, predictions=found, references=right)
    if set(right) == {"0", "1"} and set(found) <= {"0", "1"}:
        probabilities = [
            entry["score"] if entry["label"] == "1" else 1 - entry["score"] for entry in predictions
        ]
        scores |= _compute(
            BinaryF1AndAuc, predictions=found, references=right, scores=probabilities
        )
    return scores


def _score_entities(examples, predictions) -> dict[str, float]:
    lengths = [len(example["text"]) for example in examples]
    return _compute(
        EntityF1,
        predictions=list(map(character_tags, lengths, predictions)),
        references=[character_tags(len(e["text"]), e["entities"]) for e in examples],
    )


def _with_words(example, prediction) -> list[list]:
    """Entities as [start, end, label, words]."""
    return [[*entity, example["text"][entity[0] : entity[1]]] for entity in prediction]


def _score_answers(examples, predictions) -> dict[str, float]:
    return _compute(
        AnswerScores,
        predictions=[prediction["text"] for prediction in predictions],
        references=[[answer["text"] for answer in e["answers"]] for e in examples],
    )


def _score_choices(examples, predictions) -> dict[str, float]:
    right = [str(example["label"]) for example in examples]
    return _compute(Accuracy, predictions=list(map(str, predictions)), references=right)


def _class_settings(task: Task):
    return classification.ClassificationSettings(task.labels, task.max_length)


def _entity_settings(task: Task):
    stride = max(task.max_length // 2, 1)
    return entities.EntitySettings(task.labels, task.max_length, stride, task.borders)


def _answer_settings(task: Task):
    stride = max(task.max_length // 4, 1)
    return answers.AnswerSettings(task.max_length, stride, task.borders, task.longest_answer)


def _choice_settings(task: Task):
    return choices.ChoiceSettings(task.choices, task.max_length, task.blanks)


HEADS = {
    "classification": Head(
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        _class_settings,
        lambda settings: list(settings.labels),
        classification.features,
        classification.decode,
        _score_classes,
    ),
    "tokens": Head(
        AutoModelForTokenClassification,
        DataCollatorForTokenClassification,
        _entity_settings,
        lambda settings: settings.tags,
        entities.features,
        entities.decode,
        _score_entities,
        by_token=True,
        present=_with_words,
    ),
    "answers": Head(
        AutoModelForQuestionAnswering,
        DataCollatorWithPadding,
        _answer_settings,
        lambda settings: None,
        answers.features,
        answers.decode,
        _score_answers,
        ("start_logits", "end_logits"),
        by_token=True,
    ),
    "choices": Head(
        AutoModelForMultipleChoice,
        DataCollatorForMultipleChoice,
        _choice_settings,
        lambda settings: None,
        choices.features,
        choices.decode,
        _score_choices,
    ),
}
