"""Classes of texts and pairs: examples to a model's inputs, its logits to classes."""

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassificationSettings:
    """How texts become inputs.

    Attributes:
        labels: the classes, in the order of the model's outputs.
        max_length: tokens of an input, special tokens included. Longer texts are cut at their end,
            of a pair the longer one first.
    """

    labels: tuple[str, ...]
    max_length: int = 128


@dataclass(frozen=True)
class ClassificationDecoding:
    """What `decode` needs besides the logits: the classes. `inexact` counts the texts cut."""

    labels: tuple[str, ...]
    inexact: Counter


def features(
    examples, tokenizer, settings, training: bool
) -> tuple[list[dict], ClassificationDecoding]:
    """Examples {"text", "text_pair", "label"} as a data set of inputs.

    Args:
        training: whether rows get `labels`.

    Raises:
        ValueError: on a text of which the tokenizer leaves nothing; the message names the example.
    """
    cut = Counter()
    data = []
    for example in examples:
        texts = [example["text"]]
        if example["text_pair"] is not None:
            texts.append(example["text_pair"])
        row = dict(tokenizer(*texts))
        size = len(row["input_ids"])
        if size == tokenizer.num_special_tokens_to_add(pair=len(texts) == 2):
            raise ValueError(f"example {example['id']!r}: the tokenizer leaves nothing of 'text'.")
        if size > settings.max_length:
            cut["text is cut"] += 1
            row = dict(tokenizer(*texts, truncation=True, max_length=settings.max_length))
        if training:
            row["labels"] = settings.labels.index(example["label"])
        data.append(row)
    return data, ClassificationDecoding(settings.labels, cut)


def decode(logits, decoding: ClassificationDecoding) -> list[dict]:
    """The class of each example, {"label", "score"}; `score` is its probability.

    Args:
        logits: (examples, classes).
    """
    logits = np.asarray(logits, dtype=np.float64)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    return [
        {"label": decoding.labels[row.argmax()], "score": float(row.max())} for row in probabilities
    ]
