"""Entities as labels of tokens: examples to a model's inputs, its logits to entities.

A token gets "B-label" where an entity begins, "I-label" within one, else "O". Entities whose ends
lie inside tokens are trained on the tokens that hold them. Predictions are the most probable
sequence of tags in which every "I-label" continues an entity of that label.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from finetuning.spans import IGNORED, Tokens, encode, frame, windows
from spans_chinese_modernbert import context_in_window


@dataclass(frozen=True)
class EntitySettings:
    """How texts become inputs.

    Attributes:
        labels: the kinds of entities.
        max_length: tokens of an input, special tokens included. Longer texts are read in windows.
        stride: tokens from the start of one window to the start of the next.
        borders: see `finetuning.spans.encode`.
    """

    labels: tuple[str, ...]
    max_length: int = 512
    stride: int = 256
    borders: str = "words"

    @property
    def tags(self) -> list[str]:
        """The classes of the model, in order."""
        return ["O", *(f"{side}-{label}" for label in self.labels for side in "BI")]


@dataclass(frozen=True)
class EntityDecoding:
    """What `decode` needs besides the logits.

    Attributes:
        texts: the tokens of each example.
        rows: (example, start, stop) of each row of the data set: which tokens of which example.
        offset: where in a row the text begins.
        tags: the classes of the model.
        inexact: entities that cannot be predicted exactly, by reason: no run of tokens stands for
            them, or another entity has their tokens.
    """

    texts: list[Tokens]
    rows: list[tuple[int, int, int]]
    offset: int
    tags: list[str]
    inexact: Counter


def features(examples, tokenizer, settings, training: bool) -> tuple[list[dict], EntityDecoding]:
    """Examples {"text", "entities"} as a data set of inputs.

    Args:
        training: whether rows get `labels`.

    Raises:
        ValueError: on a text without tokens or an unknown label, or in training, if an example
            has no entities listed; the message names the example.
    """
    framing = frame(tokenizer, 1)
    texts, rows, data, inexact = [], [], [], Counter()
    for number, example in enumerate(examples):
        tokens = encode(example["text"], tokenizer, settings.borders)
        if not len(tokens):
            raise ValueError(f"example {example['id']!r}: the tokenizer leaves nothing of 'text'.")
        if training and example["entities"] is None:
            raise ValueError(
                f"example {example['id']!r} has no entities listed; train on a split with labels."
            )
        tags = _tags(example, tokens, settings, inexact)
        for start, stop in windows(
            len(tokens), settings.max_length - framing.size, settings.stride
        ):
            row = framing.build(tokens.ids[start:stop])
            if training:
                labels = np.full(len(row["input_ids"]), IGNORED)
                begin = framing.start_of(0)
                labels[begin : begin + stop - start] = tags[start:stop]
                row["labels"] = labels.tolist()
            rows.append((number, start, stop))
            data.append(row)
        texts.append(tokens)
    decoding = EntityDecoding(texts, rows, framing.start_of(0), settings.tags, inexact)
    return data, decoding


def _tags(example: dict, tokens: Tokens, settings: EntitySettings, inexact: Counter) -> np.ndarray:
    index = {tag: number for number, tag in enumerate(settings.tags)}
    tags = np.zeros(len(tokens), dtype=np.int64)
    for start, end, label in example["entities"] or ():
        if label not in settings.labels:
            raise ValueError(
                f"example {example['id']!r}: unknown label {label!r}; the labels are "
                f"{', '.join(settings.labels)}."
            )
        covered = tokens.cover(start, end)
        if covered is None or tags[covered[0] : covered[1] + 1].any():
            inexact["no tokens of its own"] += 1
            continue
        if not tokens.representable(start, end):
            inexact["ends within a token"] += 1
        first, last = covered
        tags[first] = index[f"B-{label}"]
        tags[first + 1 : last + 1] = index[f"I-{label}"]
    return tags


def decode(logits, decoding: EntityDecoding) -> list[list[list]]:
    """The entities of each example, [start, end, label] in the characters of its text.

    Args:
        logits: (rows, positions, tags), padded on the right; or a list of (positions, tags).
    """
    scores = [np.empty((len(tokens), len(decoding.tags))) for tokens in decoding.texts]
    room = [np.full(len(tokens), -1) for tokens in decoding.texts]
    for row, (number, start, stop) in zip(logits, decoding.rows, strict=True):
        # A token is judged where it has most context on the side where it has less.
        context = np.minimum(*context_in_window(start, stop, len(decoding.texts[number])))
        better = context > room[number][start:stop]
        inside = np.asarray(row, dtype=np.float64)[decoding.offset :][: stop - start]
        scores[number][start:stop][better] = inside[better]
        room[number][start:stop][better] = context[better]
    return [
        _entities(best_tags(score, decoding.tags), tokens, decoding.tags)
        for score, tokens in zip(scores, decoding.texts, strict=True)
    ]


def _entities(best: np.ndarray, tokens: Tokens, tags: list[str]) -> list[list]:
    found, skipped = [], False
    for position, number in enumerate(best):
        tag = tags[number]
        if tag == "O":
            continue
        start, end = tokens.text_span(position, position)
        if tag.startswith("B-"):
            # Bytes of one character stand at the same place: only the first may begin an entity.
            skipped = bool(found) and start < found[-1][1]
            if not skipped:
                found.append([start, end, tag[2:]])
        elif not skipped:
            found[-1][1] = end
    return found


def best_tags(scores: np.ndarray, tags: list[str]) -> np.ndarray:
    """(tokens,) the tags with the highest sum of scores among the sequences that are allowed.

    Args:
        scores: (tokens, tags) log-probabilities or logits.
        tags: "O", "B-label" and "I-label"; "I-label" may follow only "B-label" and "I-label".
    """
    allowed = np.array(
        [[not new.startswith("I-") or old[2:] == new[2:] for new in tags] for old in tags]
    )
    change = np.where(allowed, 0.0, -np.inf)
    total = scores[0] + np.where([tag.startswith("I-") for tag in tags], -np.inf, 0.0)
    origin = np.zeros(scores.shape, dtype=np.int64)
    for position in range(1, len(scores)):
        sums = total[:, None] + change
        origin[position] = sums.argmax(0)
        total = sums.max(0) + scores[position]
    best = [int(total.argmax())]
    for position in range(len(scores) - 1, 0, -1):
        best.append(int(origin[position, best[-1]]))
    return np.array(best[::-1])
