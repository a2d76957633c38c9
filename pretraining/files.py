"""Files that appear complete or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path in the same folder to write to; it becomes `file` if the block ends without an error.

    Raises:
        OSError: if the folder cannot be made or the file cannot take its place.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.incomplete")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, content) -> None:
    """Writes a JSON file, complete or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
