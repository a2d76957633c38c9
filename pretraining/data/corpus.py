"""Reads corpora: JSON lines, Parquet and plain text, on this machine, the Hub or any file system.

Every error names the file, the line and how to fix it: a corpus is large, and the line that breaks
is rarely the first.

Files are UTF-8. A byte order mark is no part of the text: it is dropped at the start of a file and
at the start of a later line, where files were concatenated. Inside a JSON string or a Parquet cell,
U+FEFF is a character like any other and stays.
"""

import codecs
import gzip
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import has_magic, url_to_fs

from pretraining.files import decode, half_character, other_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KINDS = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
_DAMAGE = (
    lzma.LZMAError,
    gzip.BadGzipFile,
    zlib.error,
    zstd.ZstdError,
    EOFError,
    pa.ArrowInvalid,
)
_SUPPORTED = ".jsonl or .txt, plain or with .gz, .xz or .zst, or .parquet"


class CorpusError(ValueError):
    """Input that cannot be read as it is.

    Attributes:
        kind: what is wrong with it, in the few words under which it is counted.
        of_file: whether it ended the reading of a file, which all meet who share the file.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)  # both, so that it pickles
        self.kind = kind
        self.of_file = False

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class Document:
    """One text, its domain and script where the corpus names them, and its line in its file."""

    text: str
    domain: str
    script: str
    line: int


def refuse(error: CorpusError) -> None:
    """The default for bad input: stop there."""
    raise error


def kind_of(file: str) -> str | None:
    """The ending of a corpus file, without that of its compression; None for other files."""
    for compression in COMPRESSIONS:
        file = file.removesuffix(compression)
    return next((kind for kind in KINDS if file.endswith(kind)), None)


def check_name(file: str) -> None:
    """Refuses a file whose name could not be written down.

    Raises:
        CorpusError: if its name is not UTF-8.
    """
    if half_character(file):
        raise CorpusError(
            "no file", f"{file!a}: a file name that is not UTF-8; give the file another."
        )


def find_files(paths: Sequence[str]) -> list[str]:
    """The corpus files behind files, folders and patterns, each once, in a fixed order.

    What is hidden in a folder is passed over.

    Args:
        paths: of this machine, or with a protocol that fsspec knows: `hf://datasets/user/name`
            is a data set on the Hub.

    Raises:
        CorpusError: if a path leads to no file that can be read.
    """
    files = []
    for path in paths:
        system, root = url_to_fs(path)
        try:
            if has_magic(root) and not system.exists(root):
                found = [each for each in sorted(system.glob(root)) if system.isfile(each)]
            elif system.isdir(root):
                found = [each for each in _files_of(system, root) if kind_of(each)]
            else:
                found = [root] if system.exists(root) else []
        except FileNotFoundError:  # the Hub's answer to a pattern in a folder that is not there
            found = []
        if not found:
            raise CorpusError("no file", f"{path}: no corpus file there ({_SUPPORTED}).")
        for file in found:
            check_name(file)
            if not kind_of(file):
                raise CorpusError(
                    "no file",
                    f"{file}: not a kind of corpus file; give {_SUPPORTED}.",
                )
        local = "file" in system.protocol
        files += found if local else [system.unstrip_protocol(file) for file in found]
    return list(dict.fromkeys(files))  # a file may be named by its folder, too


def passed_over(paths: Sequence[str]) -> Counter:
    """How many files of the folders among the paths `find_files` leaves out, by their ending.

    Hidden ones are not counted.
    """
    endings: Counter = Counter()
    for path in paths:
        system, root = url_to_fs(path)
        if system.isdir(root):
            left_out = (Path(file) for file in _files_of(system, root) if not kind_of(file))
            endings.update("".join(file.suffixes) or "without an ending" for file in left_out)
    return endings


def sizes_of(files: Sequence[str]) -> list[int | None]:
    """The bytes of files from `find_files`, None where the file system does not tell."""
    found = (url_to_fs(file) for file in files)
    return [system.info(root).get("size") for system, root in found]


def _files_of(system: AbstractFileSystem, root: str) -> list[str]:
    """The files of a folder, in order, without what is hidden, such as an editor's copies."""
    return sorted(file for file in system.find(root) if "/." not in file.removeprefix(root))


def read_documents(
    paths: Sequence[str],
    text_field: str = "text",
    on_error: Callable[[CorpusError], None] = refuse,
) -> Iterator[Document]:
    """Yields the documents of a corpus, in order.

    Args:
        on_error: is called with each bad document or file; if it returns, reading continues.

    Raises:
        CorpusError: if there is no document, and whatever `on_error` raises.
    """
    count = 0
    for file in find_files(paths):
        for document in read_file(file, text_field, on_error):
            count += 1
            yield document
    if not count:
        raise CorpusError(
            "no document", f"{', '.join(paths)}: the corpus is empty, it holds no document."
        )


def read_file(
    file: str,
    text_field: str = "text",
    on_error: Callable[[CorpusError], None] = refuse,
    wanted: Callable[[int], bool] = lambda number: True,
    with_names: bool = True,
) -> Iterator[Document]:
    """Yields the documents of a file: one per line or row, or the whole of a text file.

    Args:
        wanted: whether to read the line or row of a number, from 1; the others cost little.
        with_names: whether domain and script are read; else they are "unknown".
    """
    for number, record in _records(file, text_field, wanted):
        try:
            if isinstance(record, CorpusError):
                raise record
            document = _document(record, file, number, text_field, with_names)
        except CorpusError as error:
            on_error(error)
        else:
            yield document


def _records(file: str, text_field: str, wanted) -> Iterator[tuple[int, object]]:
    """(number, line or row), and last the CorpusError that ended the reading, if one did."""
    readers = {".jsonl": _json_lines, ".parquet": _parquet_rows, ".txt": _whole_text}
    number = 0
    try:
        for number, record in readers[kind_of(file)](file, text_field, wanted):
            if record is not None:
                yield number, record
        return
    except CorpusError as error:
        problem = error
    except FileNotFoundError:
        message = f"{file}: has been removed since the files were listed; start again."
        problem = CorpusError("vanished file", message)
    except (*_DAMAGE, OSError) as error:
        state = "damaged" if isinstance(error, _DAMAGE) else "unreadable"
        message = f"{file}: {state} after line {number} ({error}); copy it again."
        problem = CorpusError(f"{state} file", message)
    problem.of_file = True
    yield number, problem


def _open(file: str):
    compression = next((COMPRESSIONS[end] for end in COMPRESSIONS if file.endswith(end)), None)
    return fsspec.open(file, "rb", compression=compression).open()


def _json_lines(file: str, text_field: str, wanted) -> Iterator[tuple[int, bytes | None]]:
    """(number, line), None in place of a line that is blank or not wanted."""
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and other_encoding(line):
                if wanted(1):
                    _decode_file(line, file)  # raises
                return
            while line.startswith(codecs.BOM_UTF8):
                line = line[len(codecs.BOM_UTF8) :]
            yield number, line if wanted(number) and line and not line.isspace() else None


def _whole_text(file: str, text_field: str, wanted) -> Iterator[tuple[int, dict]]:
    if not wanted(1):
        return
    with _open(file) as content:
        yield 1, {text_field: _decode_file(content.read(), file)}


def _decode_file(content: bytes, file: str) -> str:
    try:
        return decode(content)
    except ValueError as error:
        raise CorpusError("not UTF-8", f"{file}: {error}") from error


def _parquet_rows(file: str, text_field: str, wanted) -> Iterator[tuple[int, dict | None]]:
    """(number, row), None in place of a row that is not wanted."""
    with _open(file) as content:
        table = pq.ParquetFile(content)
        names = table.schema_arrow.names
        if text_field not in names:
            raise _missing_field(file, names, text_field)
        columns = [name for name in (text_field, "domain", "script") if name in names]
        number = 0
        for batch in table.iter_batches(batch_size=64, columns=columns):
            at = batch.schema.get_field_index(text_field)
            if (texts := batch.column(at)).type in (pa.string(), pa.large_string()):
                # As bytes, so that text which is not UTF-8 costs its own row only.
                batch = batch.set_column(at, text_field, texts.cast(pa.large_binary()))
            for record in batch.to_pylist():
                number += 1
                yield number, record if wanted(number) else None


def _missing_field(where: str, names, text_field: str) -> CorpusError:
    return CorpusError(
        "missing field",
        f"{where}: no field {text_field!r} (there: {', '.join(sorted(names)) or 'none'}); name "
        "the right one with --text_field.",
    )


def _document(
    record: dict | bytes, file: str, number: int, text_field: str, with_names: bool
) -> Document:
    where = f"{file}, line {number}"
    if isinstance(record, bytes):
        record = _parse(record, where)
    if text_field not in record:
        raise _missing_field(where, record, text_field)
    text = record[text_field]
    if isinstance(text, bytes):
        text = _decode(text, where)
    if text is not None and not isinstance(text, str):
        raise CorpusError(
            "not text", f"{where}: the field {text_field!r} must be a text, got {text!r:.40}."
        )
    if not text:
        raise CorpusError(
            "empty document",
            f"{where}: the field {text_field!r} must be a text that is not empty.",
        )
    if half_character(text):
        raise CorpusError(
            "unpaired surrogate",
            f"{where}: the text holds an unpaired surrogate; fix or drop the line.",
        )
    if not with_names:
        return Document(text, "unknown", "unknown", number)
    domain, script = (_name(record.get(field), field, where) for field in ("domain", "script"))
    return Document(text, domain, script, number)


def _name(value: object, field: str, where: str) -> str:
    """A domain's or a script's name, which some corpora give as a number."""
    if value is None or value == "":
        return "unknown"
    if isinstance(value, list | dict):
        raise CorpusError(
            "domain or script is no name",
            f"{where}: the field {field!r} must be a text or a number, not {value!r}.",
        )
    return str(value)


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            "not UTF-8", f"{where}: not UTF-8 ({error}); convert the file to UTF-8."
        ) from error


def _parse(line: bytes, where: str) -> dict:
    content = _decode(line, where)
    try:
        record = json.loads(content)
    # Other than JSONDecodeError: ValueError for numbers too long for Python, and deep nesting.
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            "broken line", f"{where}: not a JSON object ({error}); fix or drop the line."
        ) from error
    if not isinstance(record, dict):
        raise CorpusError(
            "broken line", f"{where}: not a JSON object but a {type(record).__name__}."
        )
    return record
