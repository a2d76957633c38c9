"""Groups of texts that a teacher finds near."""

import numpy as np
import pytest

from embedding.neighbors import RANKS, groups_of_neighbors

# Texts on a quarter of a circle: the nearer their numbers, the nearer their vectors.
TEXTS = [f"第{number}站到了，请下车。" for number in range(100)]
ANGLES = np.linspace(0, np.pi / 2, len(TEXTS))
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def test_each_text_stands_with_its_neighbors_the_nearest_first():
    texts = ["短", *TEXTS]  # too short to be in a group
    groups = groups_of_neighbors(texts, np.append(VECTORS[:1], VECTORS, axis=0), 20, seed=0)
    assert groups.shape == (20, 1 + len(RANKS))
    assert len(set(groups[:, 0])) == 20 and groups.min() > 0
    distances = abs(groups[:, 1:] - groups[:, :1])
    assert set(distances[:, 0]) == {1}
    assert (np.diff(distances, axis=1) >= 0).all() and (distances <= RANKS).all()


def test_the_seed_draws_the_texts():
    first, again, other = (
        groups_of_neighbors(TEXTS, VECTORS, 50, seed).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(groups_of_neighbors(TEXTS, VECTORS, None, 0)) == 100


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="20 texts of 5 to 60 characters, but more than 41"):
        groups_of_neighbors(TEXTS[:20], VECTORS[:20], 5, seed=0)
    with pytest.raises(ValueError, match="101 groups, but only 100 texts"):
        groups_of_neighbors(TEXTS, VECTORS, 101, seed=0)
