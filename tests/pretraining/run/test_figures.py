"""Figures of masked tokens and their standard errors."""

import math

import numpy as np
import pytest

from pretraining.run.figures import MaskedTokens, ratio

SPELLINGS = ["", "雨", "下雨", "下雪", "雨天", "\udcf0", "", "\udce4", ""]


def tokens_of(labels, predicted, documents=None) -> MaskedTokens:
    labels = np.array(labels)
    return MaskedTokens(
        labels=labels,
        predicted=np.array(predicted),
        nats=math.log(2) * np.arange(1.0, len(labels) + 1),
        characters=np.array([len(SPELLINGS[label]) for label in labels]),
        documents=np.zeros(len(labels), int) if documents is None else np.array(documents),
    )


def test_a_score_is_that_of_the_chosen_tokens():
    score = tokens_of([1, 2, 3], [1, 2, 2]).score(np.array([False, True, True]))
    assert score.tokens == 2
    assert score.accuracy.value == 1 / 2
    assert score.bits_per_character.value == pytest.approx((2 + 3) / (2 + 2))


def test_with_a_token_a_document_the_error_is_that_of_a_mean():
    right = np.array([1, 0, 0, 1, 1])
    figure = ratio(right, np.ones(5), np.arange(5))
    assert figure.value == 3 / 5
    assert figure.error == pytest.approx(right.std(ddof=1) / math.sqrt(5))


def test_repeating_the_tokens_of_a_document_makes_no_figure_surer():
    right, documents = np.array([1, 0, 0, 1]), np.arange(4)
    once = ratio(right, np.ones(4), documents)
    tenfold = ratio(np.repeat(right, 10), np.ones(40), np.repeat(documents, 10))
    assert tenfold == pytest.approx(once)


def test_the_error_is_the_spread_of_figures_of_other_samples():
    """Of 400 samples of 50 documents, whose length and accuracy differ."""
    draw = np.random.default_rng(0)
    figures = []
    for _ in range(400):
        lengths = draw.integers(1, 30, 50)
        right = draw.random(lengths.sum()) < np.repeat(draw.random(50), lengths)
        figures.append(ratio(right, np.ones(len(right)), np.repeat(np.arange(50), lengths)))
    spread = np.std([figure.value for figure in figures])
    # The spread of 400 draws is itself sure to 4 %.
    assert np.mean([figure.error for figure in figures]) == pytest.approx(spread, rel=0.1)


def test_a_single_document_has_no_error():
    assert math.isnan(ratio(np.ones(3), np.ones(3), np.zeros(3)).error)


@pytest.mark.parametrize(
    ("labels", "predicted", "share"),
    [
        ([2, 1], [2, 1], 1),
        ([2, 1], [3, 1], 2 / 3),  # 下雪 for 下雨 spells 下
        ([4], [1], 1 / 2),
        ([2], [4], 0),  # 雨 is not in its place
        ([1], [2], 0),
        ([1, 5, 6, 6], [1, 5, 6, 6], 1),  # a character in bytes
        ([1, 5, 6, 6], [1, 5, 6, 8], 1 / 2),
        ([1, 5, 6], [1, 7, 6], 1 / 2),
    ],
)
def test_a_character_counts_where_the_predicted_token_spells_it(labels, predicted, share):
    figure = tokens_of(labels, predicted).character_accuracy(SPELLINGS)
    assert figure.value == pytest.approx(share)
