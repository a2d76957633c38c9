"""Packs documents of any length into rows of one length: best fit over a buffer of open rows."""

import bisect
from collections.abc import Iterable, Iterator

import numpy as np

from data_collator_wwm import WORD_START

# Rows kept open at a time. More of them give better fits; 4,096 rows of 1,024 tokens are 8 MiB.
OPEN_ROWS = 4096


def pack(
    documents: Iterable[np.ndarray], seq_len: int, cls_id: int, sep_id: int, pad_id: int
) -> Iterator[np.ndarray]:
    """Yields rows (seq_len,) uint16 that hold every token of every document once and in order.

    A document longer than a row is cut into pieces, before a word where one starts near the end.
    Each piece is framed `[CLS] … [SEP]` and put into the open row in which it leaves the least
    room; if none has room for it, a new row is opened. When too many are open, the fullest one is
    closed.

    Args:
        documents: (tokens,) uint16 with word-start bits.

    Raises:
        ValueError: if a row is too short for a token between [CLS] and [SEP].
    """
    if seq_len < 3:
        raise ValueError(f"seq_len {seq_len} has no room for a token between [CLS] and [SEP].")
    # Open rows in ascending order of their room; `room` and `pieces` are parallel lists.
    room: list[int] = []
    pieces: list[list[np.ndarray]] = []

    def close(index: int) -> np.ndarray:
        row = np.full(seq_len, pad_id, dtype=np.uint16)
        filled = np.concatenate(pieces.pop(index))
        row[: len(filled)] = filled
        room.pop(index)
        return row

    for document in documents:
        for piece in _cut(document, seq_len - 2):
            framed = np.concatenate(([cls_id], piece, [sep_id])).astype(np.uint16)
            index = bisect.bisect_left(room, len(framed))
            if index < len(room):
                left, held = room.pop(index) - len(framed), pieces.pop(index)
            else:
                left, held = seq_len - len(framed), []
            index = bisect.bisect_left(room, left)
            room.insert(index, left)
            pieces.insert(index, [*held, framed])
            # A row without room for another document only costs memory.
            if room[0] < 3 or len(room) > OPEN_ROWS:
                yield close(0)
    while room:
        yield close(0)


def documents_in(
    rows: Iterable[np.ndarray],
    documents: Iterable[np.ndarray],
    seq_len: int,
    cls_id: int,
    sep_id: int,
) -> Iterator[list[int]]:
    """For each row that `pack` made of some documents, the indices of those it holds, in order.

    Of documents with the same text, the last one's index stands for all.

    Args:
        rows: (seq_len,) each.
        documents: (tokens,) each, the same as were packed.
    """
    index_of = {
        piece.tobytes(): index
        for index, document in enumerate(documents)
        for piece in _cut(document, seq_len - 2)
    }
    for row in rows:
        begins, ends = np.flatnonzero(row == cls_id) + 1, np.flatnonzero(row == sep_id)
        pieces = (row[begin:end] for begin, end in zip(begins, ends, strict=True))
        yield [index_of[piece.tobytes()] for piece in pieces]


def _cut(document: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Pieces of at most `length` tokens; a word shorter than 1/16 of that is not cut."""
    start = 0
    while len(document) - start > length:
        end = start + length
        reach = max(1, length // 16)
        starts = np.flatnonzero(document[end - reach + 1 : end + 1] & WORD_START)
        if len(starts):
            end = end - reach + 1 + int(starts[-1])
        yield document[start:end]
        start = end
    if start < len(document):
        yield document[start:]
