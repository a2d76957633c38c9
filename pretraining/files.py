"""Files and folders, written complete or not at all; UTF-8 with or without a byte order mark."""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_MARKS = re.compile(r"^\ufeff+", re.MULTILINE)


def is_path(name: str) -> bool:
    """Whether the name of a model is a path; one on the Hub has one slash at most."""
    return name.startswith(("/", ".")) or name.count("/") > 1


def other_encoding(content: bytes) -> str | None:
    """The encoding that a byte order mark at the start names, if it is not UTF-8."""
    return next(
        (_OTHER_ENCODINGS[mark] for mark in _OTHER_ENCODINGS if content.startswith(mark)), None
    )


def decode(content: bytes) -> str:
    """Decodes the content of a UTF-8 file and drops its byte order marks.

    A mark stands at the start of a file, and at the start of a later line where files were
    concatenated. Anywhere else U+FEFF is a character of the text and stays.

    Raises:
        ValueError: if the content is not UTF-8; the message says how to convert it.
    """
    if encoding := other_encoding(content):
        raise ValueError(
            f"{encoding}, not UTF-8; convert the file, for example with "
            f"iconv -f {encoding} -t UTF-8."
        )
    try:
        return _MARKS.sub("", content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error}); convert the file to UTF-8.") from error


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, lines separated by `\\n`, without byte order marks.

    Raises:
        OSError, ValueError: if it cannot be read; the message names the file.
    """
    try:
        text = decode(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: Path):
    """The content of a JSON file, which may begin with a byte order mark.

    Raises:
        OSError, ValueError: if it cannot be read; the message names the file.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error


def read_json_lines(file: Path) -> Iterator[tuple[int, dict]]:
    """The number, from 1, and the object of each line of a JSONL file; empty lines are skipped.

    Raises:
        OSError, ValueError: if a line is not a JSON object; the message names file and line.
    """
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); write one object a line.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: not a JSON object: {line[:80]}")
        yield number, record


def read_table(file: Path, header: bool = True) -> Iterator[tuple[int, dict]]:
    """The line on which each row of a table ends, from 1, and its cells by column.

    `.csv` follows the csv module; all else is cut at tabs and knows no quotes, as the files of CLUE
    are written. Empty lines are skipped.

    Args:
        header: the first row names the columns; without it they are numbers from 0.

    Raises:
        OSError, ValueError: if the file cannot be read, a quote is not closed, or a row has not as
            many cells as the header; the message names file and line.
    """
    text, names = read_text(file), None
    if is_csv := file.suffix.lower() == ".csv":
        rows = _csv_rows(file, text)
    else:
        rows = ((n, line.split("\t")) for n, line in enumerate(text.split("\n"), start=1) if line)
    for number, row in rows:
        if header and names is None:
            names = row
            continue
        if header and len(row) != len(names):
            raise ValueError(
                f"{file}, line {number}: {'fewer' if len(row) < len(names) else 'more'} cells than "
                f"the {len(names)} of the header; correct the line"
                + (", or put a text with commas in double quotes." if is_csv else ".")
            )
        yield number, dict(zip(names or range(len(row)), row, strict=True))


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # the most that Windows takes
    # Strict: else a quote that is not closed, or closed within a cell, swallows lines.
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {rows.line_num}: {error}; a cell with quotes is put in quotes itself, "
            'and each of its own is doubled: "他说""好""。"'
        ) from error


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path in the same folder to write to; it becomes `file` if the block ends without an error.

    Raises:
        OSError: if the folder cannot be made or the file cannot take its place.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file; the last one to end wins.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def half_character(text: str) -> str | None:
    """The first unpaired surrogate of a text, which no encoding can hold; None without one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def filled(text, what: str) -> str:
    """The text of a record.

    Args:
        what: its file, place and key, for the message.

    Raises:
        ValueError: if it is empty or not a text.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{what} must be a text that is not empty, got {text!r}; "
            "fill it in or remove the record."
        )
    if half := half_character(text):
        raise ValueError(
            f"{what} has half of a character, {half!a}, an unpaired surrogate; correct or remove "
            "the record."
        )
    return text


def check_output(output: Path) -> None:
    """Refuses an output folder that holds something.

    Raises:
        ValueError: if it does, or is a file.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder. Name another, or empty it.")


def check_file(output: Path) -> None:
    """Refuses an output file that cannot be written, before the work for it begins.

    Raises:
        OSError: if it is a folder, or its folder cannot be made or written to.
    """
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder. Name a file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.parent):
        pass


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `output` if the block ends without an error.

    Raises:
        OSError: if it cannot be made.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it for its owner alone
        os.replace(temporary, output)  # an empty folder there gives way
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Writes a text file, complete or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, content) -> None:
    """Writes a JSON file, complete or not at all."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False))


def write_json_lines(file: Path, rows: Iterable[dict]) -> None:
    """Writes a JSONL file, an object a line, complete or not at all."""
    write_text(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
