"""Rows of pairs, triplets, ranks and scores, from JSONL, TSV or the Hub, as a data set to train on.

Each kind of task becomes the columns that its losses want:

    pairs     anchor, positive                          ["query", "title"]
    triplets  anchor, positive, negative_1 …            ["query", "title", "neg_title"]
    ranked    anchor, better, worse                     ["query", "best", "second", …], best first
    nli       anchor, positive, negative_1              ["premise", "hypothesis", "label"]
    scored    sentence1, sentence2, score in [0, 1]     ["sentence1", "sentence2", "label"]
    questions anchor, positive                          none: SQuAD's format

The last field of `triplets` and `ranked` may be a list of texts. Each text of a list of positives
makes a triplet. NLI: of each premise, an entailed and a contradicted hypothesis. Questions: the
sentences of the paragraph around the first answer.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, load_dataset

from embedding.held_out import HeldOut
from embedding.run_file import TaskSpec
from embedding.scripts import to_traditional
from embedding.tasks import rows_of_jsonl, rows_of_squad
from pretraining.data.sentences import sentence_spans
from pretraining.files import filled, read_table

Row = tuple[str, list]  # where it stands, and its fields


@dataclass(frozen=True)
class Loaded:
    """A task's rows, and how many were dropped because a text of theirs is in a test set."""

    rows: Dataset
    dropped: int


def load_task(spec: TaskSpec, seed: int, held_out: HeldOut | None = None) -> Loaded:
    """Reads a task of any kind but `teacher` and `neighbors`.

    Raises:
        OSError, ValueError: if a file or row cannot be used; the message names file, line, remedy.
    """
    examples = list(KINDS[spec.kind](spec, _rows(spec)))
    if not examples:
        raise ValueError(f"{_source(spec)} has no rows to train on.")
    kept = _not_held_out(examples, held_out)
    if spec.traditional:
        # Of both scripts: conversion exchanges words, too, so that converting back gives another
        # text.
        kept = [
            {key: to_traditional(v) if isinstance(v, str) else v for key, v in example.items()}
            for example in kept
        ]
        kept = _not_held_out(kept, held_out)
    if not kept:
        raise ValueError(f"{_source(spec)}: every row has a text of the test sets.")
    dropped = len(examples) - len(kept)
    widths = {len(example) for example in kept}
    if len(widths) > 1:
        raise ValueError(
            f"{_source(spec)}: rows with {min(widths)} and with {max(widths)} texts. "
            "All rows of a task need the same number of negatives."
        )
    return Loaded(limited(Dataset.from_list(kept), spec, seed), dropped)


def _not_held_out(examples: list[dict], held_out: HeldOut | None) -> list[dict]:
    if held_out is None:
        return examples
    return [
        example
        for example in examples
        if not held_out.holds_any(text for text in example.values() if isinstance(text, str))
    ]


def limited(rows: Dataset, spec: TaskSpec, seed: int) -> Dataset:
    """As many rows as the task may have, drawn by the seed.

    Raises:
        ValueError: if there are fewer.
    """
    if spec.limit is None:
        return rows
    if spec.limit > len(rows):
        raise ValueError(f"{_source(spec)}: limit {spec.limit}, but only {len(rows)} rows.")
    return rows.shuffle(seed=seed).select(range(spec.limit))


def _source(spec: TaskSpec) -> str:
    return spec.hub or ", ".join(map(str, spec.files)) or str(spec.teacher)


def _rows(spec: TaskSpec) -> Iterator[Row]:
    if spec.hub:
        yield from _hub_rows(spec)
    for file in spec.files:
        if all(isinstance(column, int) for column in spec.columns):
            yield from _tsv_rows(file, spec.columns)
        else:
            for number, fields in rows_of_jsonl(file, *spec.columns):
                yield f"{file}, line {number}", fields


def _tsv_rows(file: Path, columns: tuple[int, ...]) -> Iterator[Row]:
    for number, fields in read_table(file, header=False):
        if max(columns) >= len(fields):
            raise ValueError(
                f"{file}, line {number}: {len(fields)} fields, but column "
                f"{max(columns)} (counted from 0) is asked for."
            )
        yield f"{file}, line {number}", [fields[column] for column in columns]


def _hub_rows(spec: TaskSpec) -> Iterator[Row]:
    rows = load_dataset(spec.hub, spec.config, split=spec.split)
    if missing := [column for column in spec.columns if column not in rows.column_names]:
        raise ValueError(
            f"{spec.hub}: no column {missing[0]!r}; it has {', '.join(rows.column_names)}."
        )
    named = {  # labels of an NLI task: their names instead of numbers
        column: rows.features[column].int2str
        for column in spec.columns
        if spec.kind == "nli" and isinstance(rows.features[column], ClassLabel)
    }
    for number, row in enumerate(rows):
        fields = [named.get(column, lambda value: value)(row[column]) for column in spec.columns]
        yield f"{spec.hub}, row {number}", fields


def _text(value, where: str) -> str:
    return filled(value, f"{where}: each field")


def _texts(fields: list, where: str) -> list[str]:
    """The texts of a row's fields, of which the last may be a list."""
    *texts, last = fields
    texts += last if isinstance(last, list) else [last]
    return [_text(text, where) for text in texts]


def _pairs(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    for where, (anchor, positive) in rows:
        yield {"anchor": _text(anchor, where), "positive": _text(positive, where)}


def _triplets(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    for where, (anchor, *fields) in rows:
        positives, *others = fields
        if others:
            positives, negatives = _texts([positives], where), _texts(others, where)
        else:  # a list of both
            first, *negatives = _texts([positives], where)
            positives = [first]
        if not negatives:
            raise ValueError(f"{where}: no negative. Kind pairs does without.")
        # The loss of triplets takes one negative at a time.
        groups = [[text] for text in negatives] if spec.loss == "triplet" else [negatives]
        for positive, group in itertools.product(positives, groups):
            yield {
                "anchor": _text(anchor, where),
                "positive": positive,
                **{f"negative_{n}": text for n, text in enumerate(group, 1)},
            }


def _ranked(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    for where, fields in rows:
        anchor, *candidates = _texts(fields, where)
        if len(candidates) < 2:
            raise ValueError(f"{where}: at least two candidates expected, the best first.")
        for better, worse in itertools.pairwise(candidates):
            yield {"anchor": anchor, "positive": better, "negative_1": worse}


def _nli(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    premises: dict[str, dict[str, list[str]]] = {}
    for where, (premise, hypothesis, label) in rows:
        by_label = premises.setdefault(_text(premise, where), {})
        by_label.setdefault(label, []).append(_text(hypothesis, where))
    found = dict.fromkeys(label for by_label in premises.values() for label in by_label)
    if premises and not {"entailment", "contradiction"} <= found.keys():
        raise ValueError(
            f"{_source(spec)}: labels are {', '.join(map(repr, found))}; 'entailment' and "
            "'contradiction' are needed. Rename them in the file."
        )
    for premise, by_label in premises.items():
        pairs = zip(by_label.get("entailment", ()), by_label.get("contradiction", ()), strict=False)
        for entailed, contradicted in pairs:
            yield {"anchor": premise, "positive": entailed, "negative_1": contradicted}


def _scored(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    lowest, highest = spec.score_range
    for where, (left, right, value) in rows:
        score = _score(spec, value, where)
        if score is None:
            continue
        if not lowest <= score <= highest:
            raise ValueError(
                f"{where}: score {value!r} is not from {lowest:g} to {highest:g}. "
                "Correct the row, or set score_range."
            )
        yield {
            "sentence1": _text(left, where),
            "sentence2": _text(right, where),
            "score": (score - lowest) / (highest - lowest),
        }


def _score(spec: TaskSpec, value, where: str) -> float | None:
    if spec.labels is not None:
        if str(value) not in spec.labels:
            raise ValueError(
                f"{where}: label {value!r} is not among labels ({', '.join(spec.labels)}). "
                "Give it a score, or null to leave such rows out."
            )
        score = spec.labels[str(value)]
        return None if score is None else float(score)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: score {value!r} is not a number. For names of classes, set labels."
        ) from None


def _questions(spec: TaskSpec, rows: Iterator[Row]) -> Iterator[dict]:
    for file in spec.files:
        for context, question, place in rows_of_squad(file):
            yield {"anchor": question, "positive": _sentences_around(context, place, spec.length)}


def _sentences_around(text: str, place: int, length: int) -> str:
    """Whole sentences around a place, as many as fit into so many characters.

    A paragraph of SQuAD is several times as long, and takes as many times as long to learn from.
    """
    spans = sentence_spans(text)
    first = last = next((n for n, (_, end) in enumerate(spans) if place < end), len(spans) - 1)

    def fits(start: int, end: int) -> bool:
        return start >= 0 and end < len(spans) and spans[end][1] - spans[start][0] <= length

    while fits(first, last + 1) or fits(first - 1, last):
        if fits(first, last + 1):
            last += 1
        if fits(first - 1, last):
            first -= 1
    return text[spans[first][0] : spans[last][1]]


KINDS = {
    "pairs": _pairs,
    "triplets": _triplets,
    "ranked": _ranked,
    "nli": _nli,
    "scored": _scored,
    "questions": _questions,
}
