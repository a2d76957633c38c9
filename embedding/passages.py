"""Passages of text files, JSON lines, CSV and Parquet, each with its file and line."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.data.corpus import CorpusError, check_name, find_files, kind_of, read_file
from pretraining.data.sentences import passages_of
from pretraining.files import read_table

TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Passage:
    """One passage, on one line, and where it comes from: a file and a line, counted from 1."""

    text: str
    file: str
    line: int


def read_passages(
    paths: Sequence[str], text_field: str = "text", length: int = 200
) -> Iterator[Passage]:
    """The passages of some files, in order.

    Args:
        paths: .csv or .tsv files with a header, and whatever `pretraining.data.corpus` reads: .txt,
            .jsonl, plain or compressed, .parquet, folders of them and patterns.
        text_field: the key or column that holds the text.
        length: characters of a passage at most.

    Empty records are passed over, and files without any text are named on standard error.

    Raises:
        CorpusError, ValueError: if a file cannot be read, or none holds text; the message names it.
        OSError: if a file is not there.
    """
    empty, any_text = [], False
    for file in (file for path in map(str, paths) for file in _files(path)):
        check_name(file)
        texts = _table(Path(file), text_field) if _is_table(file) else _texts(file, text_field)
        found = False
        for number, text in texts:
            for passage in passages_of(text, length):
                found = True
                yield Passage(passage, file, number)
        any_text |= found
        if not found:
            empty.append(file)
    if not any_text:
        raise CorpusError("no document", f"{', '.join(empty)}: the file holds no text.")
    for file in empty:
        print(f"left out, no text: {file}", file=sys.stderr)


def _is_table(file: str) -> bool:
    return Path(file).suffix.lower() in TABLES


def _files(path: str) -> list[str]:
    """The files that a path, a folder or a pattern names, tables among them, in order.

    Raises:
        CorpusError: if there is none.
    """
    if Path(path).is_file():
        return [os.path.abspath(path)] if _is_table(path) else find_files([path])
    is_folder = Path(path).is_dir()
    found = sorted(glob.glob(f"{glob.escape(path)}/**/*" if is_folder else path, recursive=True))
    found = [os.path.abspath(file) for file in found if Path(file).is_file()]
    tables = list(filter(_is_table, found))
    if not tables:
        if _is_table(path):
            raise CorpusError("no file", f"{path}: there is no such file.")
        return find_files([path])
    if is_folder:
        # Whatever else is no corpus file is passed over, as everywhere.
        others = [file for file in found if kind_of(file)]
    else:
        others = [file for file in found if file not in tables]
    return sorted([*tables, *(find_files(others) if others else [])])


def _pass_over_empty(error: CorpusError) -> None:
    if error.kind != "empty document":
        raise error


def _texts(file: str, text_field: str) -> Iterator[tuple[int, str]]:
    """(line of the file, one line of text)."""
    of_lines = kind_of(file) == ".txt"
    for document in read_file(file, text_field, _pass_over_empty, with_names=False):
        text = document.text.replace("\r\n", "\n").replace("\r", "\n")
        for offset, line in enumerate(text.split("\n")):
            yield document.line + (offset if of_lines else 0), line


def _table(file: Path, text_field: str) -> Iterator[tuple[int, str]]:
    """(line on which the row ends, one line of its text)."""
    for number, row in read_table(file):
        if text_field not in row:
            raise ValueError(
                f"{file}: no column {text_field!r} (there: {', '.join(row)}); name the right one "
                "with --text_field."
            )
        for line in row[text_field].split("\n"):
            yield number, line
