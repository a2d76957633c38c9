"""Packing: every token once and in order, each piece framed, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_collator_wwm import WORD_START, split_row
from pretraining.data import packing
from pretraining.data.packing import documents_in, pack

CLS, SEP, PAD = 2, 3, 0


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    """Documents whose token ids count on through the corpus, a word start at every third."""
    documents, start = [], 10
    for length in lengths:
        document = np.arange(start, start + length, dtype=np.uint16)
        document[::3] |= WORD_START
        documents.append(document)
        start += length
    return documents


def pieces_of(row: np.ndarray) -> list[np.ndarray]:
    """The pieces of a row without their frames; checks the frames and the padding."""
    ids, _ = split_row(row)
    real = ids[ids != PAD]
    assert np.array_equal(ids[: len(real)], real), "padding is only at the end"
    first, last = np.flatnonzero(real == CLS), np.flatnonzero(real == SEP)
    assert first[0] == 0
    assert last[-1] == len(real) - 1
    assert np.array_equal(first[1:], last[:-1] + 1), "pieces lie end to end"
    return [row[start + 1 : end] for start, end in zip(first, last, strict=True)]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    seq_len=st.integers(5, 40),
    open_rows=st.integers(1, 8),
)
def test_every_token_is_packed_once_and_documents_keep_their_order(lengths, seq_len, open_rows):
    before, packing.OPEN_ROWS = packing.OPEN_ROWS, open_rows
    try:
        rows = list(pack(documents_of(lengths), seq_len, CLS, SEP, PAD))
    finally:
        packing.OPEN_ROWS = before
    assert all(row.shape == (seq_len,) and row.dtype == np.uint16 for row in rows)
    pieces = [piece for row in rows for piece in pieces_of(row)]
    pieces.sort(key=lambda piece: int(piece[0] & ~WORD_START))
    assert np.array_equal(np.concatenate(pieces), np.concatenate(documents_of(lengths)))


def test_a_document_that_fills_a_row_exactly_is_not_cut():
    (row,) = pack(documents_of([6]), 8, CLS, SEP, PAD)
    assert len(pieces_of(row)) == 1


def test_long_documents_are_cut_before_a_word():
    rows = list(pack(documents_of([1000]), 66, CLS, SEP, PAD))
    pieces = sorted(
        (piece for row in rows for piece in pieces_of(row)), key=lambda p: p[0] & 0x7FFF
    )
    assert len(pieces) > 10
    assert all(piece[0] & WORD_START for piece in pieces)


def test_realistic_lengths_leave_at_most_one_percent_of_padding():
    lengths = np.random.default_rng(0).lognormal(5, 1.2, 5000).astype(int) + 1
    documents = (np.full(length, 10, dtype=np.uint16) for length in lengths)
    rows = np.stack(list(pack(documents, 1024, CLS, SEP, PAD)))
    assert (rows == PAD).mean() <= 0.01


def test_a_row_too_short_for_a_frame_is_refused():
    with pytest.raises(ValueError, match="seq_len 2 has no room"):
        list(pack(documents_of([1]), 2, CLS, SEP, PAD))


def test_the_documents_of_each_row_are_found_again():
    documents = documents_of([5, 40, 1, 23, 17])
    rows = list(pack(documents, 12, CLS, SEP, PAD))
    for row, indices in zip(rows, documents_in(rows, documents, 12, CLS, SEP), strict=True):
        pieces = pieces_of(row)
        assert len(pieces) == len(indices)
        for piece, index in zip(pieces, indices, strict=True):
            assert np.isin(piece, documents[index]).all()
