"""Search in a file that a visitor brings: passages, their vectors, exact cosines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretraining.data.sentences import passages_of
from pretraining.files import decode
from serving.page import PageError, max_tokens_of, normalized, read_input
from serving.runtime import Runtime

MAX_BYTES = 2_000_000
MAX_PASSAGES = 2_000
PASSAGE_LENGTH = 200  # characters
FOUND = 5  # passages that a search shows
CHUNK = 64  # passages between two reports of progress


@dataclass(frozen=True)
class SearchIndex:
    """Passages and their vectors.

    Attributes:
        passages: their texts.
        vectors: (passages, size) of length 1.
        is_complete: whether all passages of the file are there.
    """

    passages: list[str]
    vectors: np.ndarray
    is_complete: bool

    def best(self, vector: np.ndarray) -> list[tuple[int, float]]:
        """Numbers and cosines of the `FOUND` passages nearest to a vector (size,), best first."""
        cosines = self.vectors @ normalized(vector[None])[0]
        order = np.argsort(-cosines, kind="stable")[:FOUND]
        return [(int(number), float(cosines[number])) for number in order]


def split_passages(text: str) -> list[str]:
    """The lines of a text; long ones are cut behind sentences, or else where they must be."""
    lines = text.split("\n")
    return [passage for line in lines for passage in passages_of(line, PASSAGE_LENGTH)]


def read_passages(file: Path) -> list[str]:
    """The passages of a UTF-8 text file.

    Raises:
        PageError: if the file is too large, empty or not UTF-8 text.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise PageError(
            f"文件太大（{size / 1e6:.1f} MB），最多 {MAX_BYTES / 1e6:.0f} MB。 "
            f"The file is too large ({size / 1e6:.1f} MB); up to {MAX_BYTES / 1e6:.0f} MB can be "
            "searched here."
        )
    content = file.read_bytes()
    try:
        text = decode(content)
    except ValueError as error:
        raise PageError(
            "文件不是 UTF-8 文本，请另存为 UTF-8 后再试。 "
            "The file is not UTF-8 text: save it as UTF-8 and drop it again."
        ) from error
    passages = split_passages(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not passages:
        raise PageError("文件是空的。 The file is empty.")
    return passages


def build_index(
    runtime: Runtime, passages: list[str], report: Callable[[int, int], None] = lambda *_: None
) -> SearchIndex:
    """Vectors for up to `MAX_PASSAGES` passages; `report(done, all)` is called in between."""
    kept = passages[:MAX_PASSAGES]
    chunks = []
    for start in range(0, len(kept), CHUNK):
        report(start, len(kept))
        chunks.append(runtime.vectors(kept[start : start + CHUNK]))
    return SearchIndex(kept, normalized(np.concatenate(chunks)), len(kept) == len(passages))


def search(
    runtime: Runtime, index: SearchIndex, question: str
) -> tuple[list[tuple[int, float]], int]:
    """Numbers and cosines of the passages nearest to a question, and how many of its characters
    were not read.

    Raises:
        PageError: if the question is empty.
    """
    read = read_input(question, runtime.tokenizer, max_tokens_of(runtime))
    return index.best(runtime.vectors([read.text])[0]), read.dropped
