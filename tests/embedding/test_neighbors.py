"""Pairs of near and far texts with a teacher's similarity."""

from collections import defaultdict

import numpy as np
import pytest

from embedding.neighbors import RANKS, scored_pairs

# Texts on a quarter of a circle: the nearer their numbers, the nearer their vectors.
TEXTS = [f"第{number}站到了，请下车。" for number in range(100)]
ANGLES = np.linspace(0, np.pi / 2, len(TEXTS))
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def test_each_text_stands_with_near_and_far_ones_and_the_nearer_the_higher():
    vectors = np.append(VECTORS, VECTORS[:1], axis=0)
    partners = defaultdict(list)
    for text, other, score in scored_pairs([*TEXTS, "短"], vectors, 100, seed=0):
        partners[text].append((other, score))
    assert len(partners) == 20 and {len(each) for each in partners.values()} == {len(RANKS) + 1}
    for text, each in partners.items():
        at = TEXTS.index(text)
        distances = [abs(TEXTS.index(other) - at) for other, _ in each]
        assert distances[0] == 1 and 0 not in distances
        assert distances[0] <= distances[1] < distances[2] < distances[3] <= RANKS[-1]
        scores = [score for _, score in each]
        assert 1 >= scores[0] >= scores[1] >= scores[2] >= scores[3] >= 0
        assert scores[0] > 0.95


def test_the_seed_draws_the_texts():
    first, again, other = (list(scored_pairs(TEXTS, VECTORS, 50, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len(list(scored_pairs(TEXTS, VECTORS, None, 0))) == 500


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="20 texts of 5 to 60 characters, but more than 41"):
        next(scored_pairs(TEXTS[:20], VECTORS[:20], 50, seed=0))
    with pytest.raises(ValueError, match="501 pairs, but 100 texts give 5 each"):
        next(scored_pairs(TEXTS, VECTORS, 501, seed=0))
