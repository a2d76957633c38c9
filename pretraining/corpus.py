"""Reads corpora: JSON lines, plain or compressed, one document a line.

Every complaint names the file, the line and the mend, because a corpus is large and the line that
breaks is rarely the first.
"""

import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_OPENERS = {".jsonl": open, ".xz": lzma.open, ".gz": gzip.open}


class CorpusError(ValueError):
    """A corpus that cannot be read as it is."""


@dataclass(frozen=True)
class Document:
    """One text, with its domain and script where the corpus names them, and where it stands."""

    text: str
    domain: str
    script: str
    source_file: str
    line: int


def find_files(paths: Sequence[str]) -> list[Path]:
    """The corpus files behind files, folders and glob patterns, in a fixed order.

    Raises:
        CorpusError: if a path leads to no .jsonl, .jsonl.xz or .jsonl.gz file.
    """
    files = []
    for path in paths:
        if Path(path).is_dir():
            found = [each for each in sorted(Path(path).rglob("*.jsonl*")) if each.is_file()]
        else:
            found = [Path(each) for each in sorted(glob.glob(path))]
        if not found:
            raise CorpusError(f"{path}: no corpus file there (.jsonl, .jsonl.xz or .jsonl.gz).")
        files += found
    for file in files:
        if file.suffix not in _OPENERS:
            raise CorpusError(
                f"{file}: not a kind of corpus file that can be read; give .jsonl, .jsonl.xz or "
                ".jsonl.gz, with one JSON object a line."
            )
    return files


def read_documents(paths: Sequence[str], text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of a corpus, in order.

    Raises:
        CorpusError: on a missing or damaged file, a line that is not a JSON object in UTF-8 with a
            non-empty text, or a corpus without a document.
    """
    count = 0
    for file in find_files(paths):
        for document in _read_file(file, text_field):
            count += 1
            yield document
    if not count:
        raise CorpusError(f"{', '.join(paths)}: the corpus is empty, it holds no document.")


def _read_file(file: Path, text_field: str) -> Iterator[Document]:
    number = 0
    try:
        with _OPENERS[file.suffix](file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, file, number, text_field)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CorpusError(
            f"{file}: damaged compressed file after line {number} ({error}); copy it again."
        ) from error
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read: {error}") from error


def _parse(line: bytes, file: Path, number: int, text_field: str) -> Document:
    where = f"{file}, line {number}"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 ({error}); convert the file to UTF-8.") from error
    # Beside JSONDecodeError, a ValueError: numbers too long for Python, and nesting too deep.
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{where}: not a JSON object ({error}); mend or drop the line."
        ) from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: not a JSON object but a {type(record).__name__}.")
    if text_field not in record:
        fields = ", ".join(sorted(record)) or "none"
        raise CorpusError(
            f"{where}: no field {text_field!r} (there: {fields}); name the right one with "
            "--text_field."
        )
    text = record[text_field]
    if not isinstance(text, str) or not text:
        raise CorpusError(f"{where}: the field {text_field!r} must be a text that is not empty.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CorpusError(f"{where}: the text holds half a surrogate pair; mend or drop the line.")
    return Document(
        text, record.get("domain", "unknown"), record.get("script", "unknown"), str(file), number
    )
