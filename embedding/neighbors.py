"""Pairs of near and far texts, with a teacher's similarity as their score.

Two texts drawn at random hardly ever have to do with each other, so that a teacher's similarities
within a batch say little about fine grades. Here each text stands with its nearest, third, tenth
and fortieth neighbor by the teacher's vectors, and with one at random. The score is 0 for what is
no closer than texts at random, and 1 for the same (Augmented SBERT, arXiv:2010.08240, with a
bi-encoder as teacher).
"""

from collections.abc import Iterator

import numpy as np

RANKS = (1, 3, 10, 40)
SHORTEST, LONGEST = 5, 60  # characters of a text
ANCHORS = 500  # whose cosines with all texts are in memory at once


def scored_pairs(
    texts: list[str], vectors: np.ndarray, count: int | None, seed: int
) -> Iterator[tuple[str, str, float]]:
    """Two texts and their score, five times for each text that is drawn.

    Args:
        vectors: (texts, size), of length 1.
        count: how many pairs; None draws all texts.

    Raises:
        ValueError: if there are too few texts of the right length.
    """
    chosen = [n for n, text in enumerate(texts) if SHORTEST <= len(text) <= LONGEST]
    if len(chosen) <= RANKS[-1] + 1:
        raise ValueError(
            f"{len(chosen)} texts of {SHORTEST} to {LONGEST} characters, but more than "
            f"{RANKS[-1] + 1} are needed."
        )
    vectors = np.asarray(vectors[chosen], dtype=np.float32)
    generator = np.random.default_rng(seed)
    each = len(RANKS) + 1
    if count is not None and count > each * len(chosen):
        raise ValueError(f"{count} pairs, but {len(chosen)} texts give {each} each.")
    drawn = None if count is None else -(-count // each)
    anchors = generator.permutation(len(chosen))[:drawn]
    strangers = generator.integers(len(chosen) - 1, size=len(anchors))
    strangers += strangers >= anchors  # anyone but oneself
    usual = np.median((vectors[anchors] * vectors[strangers]).sum(axis=1))
    for at in range(0, len(anchors), ANCHORS):
        block = anchors[at : at + ANCHORS]
        cosines = vectors[block] @ vectors.T
        cosines[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(-cosines, RANKS[-1], axis=1)[:, : RANKS[-1]]
        by_rank = np.take_along_axis(cosines, nearest, axis=1).argsort(axis=1)[:, ::-1]
        nearest = np.take_along_axis(nearest, by_rank, axis=1)[:, np.array(RANKS) - 1]
        partners = np.append(nearest, strangers[at : at + ANCHORS, None], axis=1)
        for own, anchor, others in zip(cosines, block, partners, strict=True):
            for other in others:
                score = float(np.clip((own[other] - usual) / (1 - usual), 0, 1))
                yield texts[chosen[anchor]], texts[chosen[other]], round(score, 2)
