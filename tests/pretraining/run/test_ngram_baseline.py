"""The n-gram baselines, against counting by hand."""

import math

import numpy as np
import pytest

from pretraining.data.rows import open_rows, write_manifest, write_shards
from pretraining.run.ngram_baseline import contexts_of, predict

CLS, SEP, PAD = 2, 3, 0
SIZE = 10


def row_set(folder, *rows):
    shards = write_shards(folder, "rows", [np.array(row, np.uint16) for row in rows], len(rows[0]))
    special = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "mask_id": 4}
    write_manifest(folder, len(rows[0]), shards, {"special_token_ids": special, "vocab_size": SIZE})
    return open_rows(folder)


@pytest.fixture
def train(tmp_path):
    return row_set(tmp_path, [CLS, 5, 6, 7, SEP], [CLS, 5, 6, 8, SEP], [CLS, 9, 6, 7, SEP])


def unigram(token: int) -> float:
    """Nine tokens of text, and each of the ten entries once more."""
    counts = {5: 2, 6: 3, 7: 2, 8: 1, 9: 1}
    return (counts.get(token, 0) + 1) / (9 + SIZE)


def test_contexts_stay_within_their_document():
    ids = np.array([CLS, 5, 6, SEP, CLS, 7])
    keys, inside = contexts_of(ids, CLS, 2)
    assert inside.tolist() == [False, False, True, True, False, False]
    assert keys[2] == 5 + (CLS << 15)


def test_a_unigram_names_the_commonest_token(train):
    predictions = predict(train, np.array([CLS, 8, 9, SEP]), np.array([1, 2]), order=1)
    assert predictions[:, 0].tolist() == [6, 6]
    assert np.exp(-predictions[:, 1]) == pytest.approx([unigram(8), unigram(9)])


def test_a_bigram_mixes_what_follows_with_the_unigram(train):
    """After 6 came 7 twice and 8 once: three occurrences, two kinds."""
    (predicted, nats), _ = predict(train, np.array([CLS, 9, 6, 7, SEP]), np.array([3, 1]), order=2)
    assert predicted == 7
    assert math.exp(-nats) == pytest.approx((2 + 2 * unigram(7)) / (3 + 2))


def test_a_trigram_backs_off_where_the_context_is_new(train):
    ids = np.array([CLS, 5, 6, 8, SEP, CLS, 8, 6, 7, SEP])
    known, new = predict(train, ids, np.array([3, 8]), order=3)
    bigram = (1 + 2 * unigram(8)) / (3 + 2)
    assert math.exp(-known[1]) == pytest.approx((1 + 2 * bigram) / (2 + 2))
    assert math.exp(-new[1]) == pytest.approx((2 + 2 * unigram(7)) / (3 + 2))
