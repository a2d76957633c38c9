"""Reads tasks that give a class to a text or a pair: files and Hub data sets with named columns.

    read_columns(Path("train.csv"), Columns(text="review", label="stars"))

Readers return the examples {"id", "text", "text_pair", "label"} and a count of the examples that
are left out, by reason. Labels are texts; those of a hidden test are None.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuning.records import not_empty
from pretraining.files import filled, read_json, read_json_lines, read_table, read_text


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what.

    Attributes:
        text: the column of the text: its name, or its index in a TSV or CSV file without a header.
        label: the column of the class. A file without it is a hidden test.
        text_pair: the column of the second text of a pair.
        ignored: labels whose examples are left out, such as OCNLI's "-" (its annotators disagreed).
    """

    text: str | int
    label: str | int = "label"
    text_pair: str | int | None = None
    ignored: tuple[str, ...] = ()

    def example(self, record: dict, where: str) -> dict:
        """`record` with its text, second text or None, and label or None, under these names.

        Raises:
            ValueError: on a column that is not there, an empty text or half a label.
        """
        pair = self.text_pair
        return {
            "text": _filled(record, self.text, where),
            "text_pair": None if pair is None else _filled(record, pair, where),
            "label": _label(record, self.label, where),
        }


def read_columns(file: Path, columns: Columns) -> tuple[list[dict], Counter]:
    """Reads a file of examples by its columns.

    `.json` and `.jsonl` hold one object a line, or one list of objects. `.tsv` and `.txt` are cut
    at tabs and know no quotes, as the files of CLUE are written; `.csv` follows the csv module. If
    the columns are names, the first line of a table is its header.

    Raises:
        ValueError: on a column that is not there, an empty text, a missing label or a line that
            cannot be read, with file, line, column and how to fix it.
    """

    return _examples(_records(file, columns), columns.example, str(file), columns.ignored)


def read_hub(name: str, split: str, columns: Columns) -> tuple[list[dict], Counter]:
    """Reads a split of a Hub data set, or of anything else that `datasets.load_dataset` opens.

    Labels that the data set keeps as numbers of `ClassLabel` become their names.

    Raises:
        ValueError: on a column that is not there, an empty text or a missing label.
    """
    import datasets  # here: tables of results are made without it

    data = datasets.load_dataset(name, split=split)
    kind = data.features.get(columns.label)
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None

    def example(record: dict, where: str) -> dict:
        found = columns.example(record, where)
        if names and (label := found["label"]) is not None:
            found["label"] = names[int(label)] if int(label) >= 0 else None  # hidden tests have -1
        return found

    where = f"{name}, split {split!r}"
    records = ((f"{where}, row {row}", record) for row, record in enumerate(data, start=1))
    return _examples(records, example, where, columns.ignored)


def read_wsc(file: Path) -> tuple[list[dict], Counter]:
    """Reads CLUEWSC2020: does the pronoun stand for the noun? One JSON object a line.

    The text marks both spans, the noun as "_noun_" and the pronoun as "[pronoun]". The label is
    "true" or "false".

    Raises:
        ValueError: if a span does not stand at its index, and as `read_columns`.
    """

    def example(record: dict, where: str) -> dict:
        text = _filled(record, "text", where)
        target = record.get("target", {})
        marks = []
        for number, (left, right) in ((1, "__"), (2, "[]")):
            words, start = target.get(f"span{number}_text"), target.get(f"span{number}_index")
            if not words or not isinstance(start, int) or not text.startswith(words, start):
                raise ValueError(
                    f"{where}: 'span{number}_text' {words!r} does not stand at 'span{number}_index'"
                    f" {start!r} of 'text'; correct the index, it counts characters from 0."
                )
            marks += [(start, 1, left), (start + len(words), 0, right)]
        # From the end, so that indices stay right; a mark that closes comes before one that opens.
        for place, _, mark in sorted(marks, reverse=True):
            text = text[:place] + mark + text[place:]
        return {"text": text, "text_pair": None, "label": _label(record, "label", where)}

    return _examples(_records(file, None), example, str(file))


def read_csl(file: Path) -> tuple[list[dict], Counter]:
    """Reads CSL: are these keywords the abstract's own? One JSON object a line.

    The keywords, joined by "，", are the first text and the abstract is the second.

    Raises:
        ValueError: on a record without keywords, and as `read_columns`.
    """

    def example(record: dict, where: str) -> dict:
        words = record.get("keyword")
        if not isinstance(words, list) or not words or not all(map(str.strip, words)):
            raise ValueError(f"{where}: 'keyword' must list texts that are not empty, got {words}.")
        return {
            "text": "，".join(words),
            "text_pair": _filled(record, "abst", where),
            "label": _label(record, "label", where),
        }

    return _examples(_records(file, None), example, str(file))


def _examples(
    records: Iterable[tuple[str, dict]],
    build: Callable[[dict, str], dict],
    name: str,
    ignored: tuple[str, ...] = (),
) -> tuple[list[dict], Counter]:
    """Examples from (where, record), with ids, ignored labels left out."""
    examples, skipped, unlabeled = [], Counter(), None
    for number, (where, record) in enumerate(records):
        example = build(record, where)
        if example["label"] is None:
            unlabeled = unlabeled or where
        if example["label"] in ignored:
            skipped[f"left out: label {example['label']!r}"] += 1
            continue
        examples.append({"id": record.get("id", number), **example})
    if unlabeled and any(example["label"] is not None for example in examples):
        raise ValueError(
            f"{unlabeled}: has no label, while other examples have one; give it one or remove it."
        )
    return not_empty(examples, name), skipped


def _records(file: Path, columns: Columns | None) -> Iterator[tuple[str, dict]]:
    """(where, record) of each record of a file."""
    kind = file.suffix.lower()
    if kind in (".json", ".jsonl"):
        yield from _json_records(file)
    elif kind in (".csv", ".tsv", ".txt"):
        rows = read_table(file, header=isinstance(columns.text, str))
        yield from ((f"{file}, line {number}", row) for number, row in rows)
    else:
        raise ValueError(f"{file}: cannot read {kind!r}; give .json, .jsonl, .csv, .tsv or .txt.")


def _json_records(file: Path) -> Iterator[tuple[str, dict]]:
    if not read_text(file).lstrip().startswith("["):
        for number, record in read_json_lines(file):
            yield f"{file}, line {number}", record
        return
    for number, record in enumerate(read_json(file), start=1):
        where = f"{file}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object with named values, got {record!r:.80}.")
        yield where, record


def _filled(record: dict, column: str | int, where: str) -> str:
    if column not in record:
        raise ValueError(
            f"{where}: there is no column {column!r}, only {', '.join(map(repr, record))}; "
            "name the column that holds the text."
        )
    return filled(record[column], f"{where}: column {column!r}")


def _label(record: dict, column: str | int, where: str) -> str | None:
    if column not in record:
        return None
    label = record[column]
    if isinstance(label, float) and math.isnan(label):  # as pandas writes a missing value
        label = None
    if not isinstance(label, str | int | float | None):
        raise ValueError(
            f"{where}: column {column!r}, the label, is {label!r}; one class a text is expected, a "
            "text or a number."
        )
    if label is None or not label_text(label):
        raise ValueError(
            f"{where}: column {column!r}, the label, is empty; fill it in, remove the record, or "
            "in a hidden test the whole column."
        )
    return label_text(label)


def label_text(label: str | int | float) -> str:
    """A label as a text: 1.0 and 1 are one label, and true is written as JSON has it."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).lower() if isinstance(label, bool) else str(label).strip()
