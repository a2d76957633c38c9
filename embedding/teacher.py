"""A teacher's vectors on disk: a folder of sentences and a memory-mapped fp16 matrix.

sentences.txt    one text a line
vectors.f16      (sentences, size), fp16, rows in the order of the lines, each of length 1
teacher.json     which teacher, which sentences, how many rows are written
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pretraining.files import read_json, read_text, write_json

NOTE, SENTENCES, VECTORS = "teacher.json", "sentences.txt", "vectors.f16"


@dataclass(frozen=True)
class TeacherNote:
    """What `teacher.json` says.

    Args:
        teacher: folder or name of the model, for people.
        fingerprint: of its weights.
        prompt: name of the prompt that the texts were given, or None for the model's default.
        sentences: SHA-256 of the sentences.
        count: how many there are.
        size: dimensions of a vector.
        done: how many vectors are written; training needs all.
    """

    teacher: str
    fingerprint: str
    prompt: str | None
    sentences: str
    count: int
    size: int
    done: int = 0

    @property
    def same_work(self) -> tuple:
        """What must agree for a resumed run to go on."""
        return (self.fingerprint, self.prompt, self.sentences, self.count, self.size)


def digest_of(sentences: list[str]) -> str:
    """SHA-256 of the sentences, in their order."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def write_note(folder: Path, note: TeacherNote) -> None:
    write_json(folder / NOTE, asdict(note))


def read_note(folder: Path) -> TeacherNote:
    """The note of a folder.

    Raises:
        ValueError, OSError: if there is none, or it is not a teacher's.
    """
    if not (folder / NOTE).exists():
        raise ValueError(f"{folder} has no {NOTE}: make it with python -m embedding.distill.")
    try:
        return TeacherNote(**read_json(folder / NOTE))
    except TypeError as error:
        raise ValueError(f"{folder / NOTE} is not a teacher's note: {error}") from error


def open_vectors(folder: Path, note: TeacherNote, mode: str) -> np.memmap:
    """(count, size), fp16; mode "w+" makes the file, "r+" goes on with it, "r" reads.

    Raises:
        OSError, ValueError: if the file is missing or of another length.
    """
    file, needed = folder / VECTORS, 2 * note.count * note.size
    if mode != "w+" and (size := file.stat().st_size) != needed:
        raise ValueError(
            f"{file} has {size:,} bytes, not {needed:,}: it is not the one that was begun. Remove "
            f"{folder} and start anew."
        )
    vectors = np.memmap(file, np.float16, mode, shape=(note.count, note.size))
    if mode == "w+" and hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as opened:  # a hole in a file kills who writes to it when disks fill
            os.posix_fallocate(opened.fileno(), 0, needed)
    return vectors


def read_teacher(folder: Path) -> tuple[list[str], np.memmap]:
    """All sentences and their vectors, of a folder that is complete.

    Raises:
        ValueError, OSError: if it is not.
    """
    note = read_note(folder)
    if note.done < note.count:
        raise ValueError(
            f"{folder}: {note.done:,} of {note.count:,} vectors are written. "
            "Start embedding.distill again with the same arguments; it goes on."
        )
    sentences = read_text(folder / SENTENCES).splitlines()
    if digest_of(sentences) != note.sentences:
        raise ValueError(f"{folder / SENTENCES} was changed. Make the folder anew.")
    return sentences, open_vectors(folder, note, "r")
