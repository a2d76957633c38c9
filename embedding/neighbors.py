"""Groups of texts that a teacher finds near, so that a student learns its fine grades.

Two texts drawn at random hardly ever have to do with each other, so that a teacher's similarities
within a batch of them say little about how near is near. Here each text stands with its nearest,
second, third, fifth, tenth, twentieth and fortieth neighbor by the teacher's vectors: a batch of
such groups has pairs of all grades (after the balanced batches of arXiv:2104.06967).
"""

import numpy as np
import torch

RANKS = (1, 2, 3, 5, 10, 20, 40)
SHORTEST, LONGEST = 5, 60  # characters of a text
ANCHORS = 500  # whose cosines with all texts are in memory at once


def groups_of_neighbors(
    texts: list[str], vectors: np.ndarray, count: int | None, seed: int
) -> np.ndarray:
    """(groups, 1 + ranks): rows of texts, each beside its neighbors.

    Args:
        vectors: (texts, size), of length 1.
        count: how many groups, drawn by the seed; None makes one of each text.

    Raises:
        ValueError: if there are too few texts of the right length.
    """
    chosen = np.array([n for n, text in enumerate(texts) if SHORTEST <= len(text) <= LONGEST])
    if len(chosen) <= RANKS[-1] + 1:
        raise ValueError(
            f"{len(chosen)} texts of {SHORTEST} to {LONGEST} characters, but more than "
            f"{RANKS[-1] + 1} are needed."
        )
    if count is not None and count > len(chosen):
        raise ValueError(f"{count} groups, but only {len(chosen)} texts.")
    vectors = torch.from_numpy(np.asarray(vectors[chosen], dtype=np.float32))
    anchors = np.random.default_rng(seed).permutation(len(chosen))[:count]
    groups = []
    for at in range(0, len(anchors), ANCHORS):
        block = anchors[at : at + ANCHORS]
        cosines = vectors[block] @ vectors.T
        cosines[np.arange(len(block)), block] = -np.inf
        nearest = cosines.topk(RANKS[-1], dim=1).indices.numpy()[:, np.array(RANKS) - 1]
        groups.append(chosen[np.append(block[:, None], nearest, axis=1)])
    return np.concatenate(groups)
