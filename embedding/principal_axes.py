"""The principal axes of vectors: a teacher's, turned to them, or a model's own, made white."""

import numpy as np

BLOCK = 65_536  # rows that are read at a time


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean (size,) of all rows, their principal axes (size, axes), and the variance on each.

    The widest axis comes first. The signs are fixed, so that a resumed run has the same axes.

    Args:
        vectors: (rows, size), read in blocks.
    """
    size = vectors.shape[1]
    total, products = np.zeros(size), np.zeros((size, size))
    for at in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[at : at + BLOCK], dtype=np.float64)
        total += block.sum(axis=0)
        products += block.T @ block
    mean = total / len(vectors)
    variances, axes = np.linalg.eigh(products / len(vectors) - np.outer(mean, mean))
    axes, variances = axes[:, ::-1], variances[::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(size)])
    return tuple(np.ascontiguousarray(each, dtype=np.float32) for each in (mean, axes, variances))


def whitening(vectors: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean (size,), and the matrix (size, axes) that makes rows less the mean white.

    Each axis is divided by its spread, so that what all rows share no longer counts for more than
    what tells them apart (arXiv:2103.15316).

    Args:
        vectors: (rows, size).
        shrinkage: the share of the mean variance that is added to that of each axis, so that narrow
            ones, which are noise, do not count in full.
    """
    mean, axes, variances = principal_axes(vectors)
    return mean, axes / np.sqrt(variances + shrinkage * variances.mean())
