"""The n-gram baselines, against counting by hand."""

import math

import numpy as np
import pytest

from pretraining.data.rows import open_rows, write_manifest, write_shards
from pretraining.run import ngram_baseline
from pretraining.run.ngram_baseline import contexts_of, discounts, predict

CLS, SEP, PAD = 2, 3, 0
SIZE = 10


def row_set(folder, *rows):
    folder.mkdir(exist_ok=True)
    shards = write_shards(folder, "rows", [np.array(row, np.uint16) for row in rows], len(rows[0]))
    special = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "mask_id": 4}
    write_manifest(folder, len(rows[0]), shards, {"special_token_ids": special, "vocab_size": SIZE})
    return open_rows(folder)


@pytest.fixture
def train(tmp_path):
    return row_set(tmp_path, [CLS, 5, 6, 7, SEP], [CLS, 5, 6, 8, SEP], [CLS, 9, 6, 7, SEP])


def test_contexts_stay_within_their_document():
    ids = np.array([CLS, 5, 6, SEP, CLS, 7])
    keys, inside = contexts_of(ids, CLS, 2)
    assert inside.tolist() == [False, False, True, True, False, False]
    assert keys[2] == 5 + (CLS << 15)


def chances(train, ids, places, order) -> list[float]:
    """The probability of the true token at each place."""
    return np.exp(-predict(train, np.array(ids), np.array(places), order)[:, 1]).tolist()


def test_discounts_are_those_of_chen_and_goodman():
    counts = np.repeat([1, 2, 3, 4, 5], [100, 50, 30, 20, 7])
    y = 100 / (100 + 2 * 50)
    wanted = [0, 1 - 2 * y * 50 / 100, 2 - 3 * y * 30 / 50, 3 - 4 * y * 20 / 30]
    assert discounts(counts).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("counts", [[1, 2, 3, 5], [1, 2, 2, 2, 3, 4, 4, 4, 4]])
def test_too_few_counts_have_the_discounts_of_the_fallback(counts):
    assert discounts(np.array(counts)).tolist() == [0, 0.5, 1, 1.5]


def test_a_unigram_names_the_commonest_token(train):
    """Nine tokens; 5 to 9 occur 2, 3, 2, 1 and 1 times."""
    left = (1 + 1.5 + 1 + 0.5 + 0.5) / 9
    predictions = predict(train, np.array([CLS, 8, 5, 4, SEP]), np.array([1, 2, 3]), order=1)
    assert predictions[:, 0].tolist() == [6, 6, 6]
    wanted = [0.5 / 9 + left / SIZE, 1 / 9 + left / SIZE, left / SIZE]
    assert np.exp(-predictions[:, 1]) == pytest.approx(wanted)


# That of 5 and 7 below the contexts: 5 to 9 come after 1, 2, 1, 1 and 1 different tokens.
BELOW = 0.5 / 6 + (4 * 0.5 + 1) / 6 / SIZE


def test_a_bigram_mixes_what_follows_with_what_follows_much(train):
    """7 follows 6 twice and 8 once."""
    ((predicted, nats),) = predict(train, np.array([CLS, 9, 6, 7, SEP]), np.array([3]), order=2)
    assert predicted == 7
    assert math.exp(-nats) == pytest.approx(1 / 3 + 1.5 / 3 * BELOW)


def test_at_the_beginning_of_a_document_occurrences_count(train):
    """5 begins a document twice and 9 once."""
    (chance,) = chances(train, [CLS, 5, SEP], [1], order=3)
    assert chance == pytest.approx(1 / 3 + 1.5 / 3 * BELOW)


def test_below_the_longest_context_repetitions_do_not_count(tmp_path, train):
    """However often 6 7 comes after 5, that says nothing of 6 after 8."""
    often = row_set(
        tmp_path / "often", *[[CLS, 5, 6, 7, SEP]] * 9, [CLS, 5, 6, 8, SEP], [CLS, 9, 6, 7, SEP]
    )
    new = [CLS, 8, 6, 7, SEP]
    assert chances(often, new, [3], order=3) == pytest.approx(chances(train, new, [3], order=3))
    known = [CLS, 5, 6, 7, SEP]
    assert chances(often, known, [3], order=3) > chances(train, known, [3], order=3)


@pytest.mark.parametrize("before", [[], [5], [5, 6], [9, 6], [8, 6], [6, 7]])
def test_probabilities_sum_to_one(train, before):
    """[CLS] would begin another document here; it is as likely as the other unseen entries."""
    tokens = [1 if token == CLS else token for token in range(SIZE)]
    found = [
        chances(train, [CLS, *before, token, SEP], [len(before) + 1], order=4) for token in tokens
    ]
    assert np.sum(found) == pytest.approx(1)


def test_more_tokens_than_are_counted_are_sampled_evenly(train):
    (counted,) = ngram_baseline.counted_ids(train, most_tokens=10)
    assert counted.tolist() == [CLS, 5, 6, 7, SEP, CLS, 9, 6, 7, SEP]
