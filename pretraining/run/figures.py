"""Masked accuracy and bits per character of masked tokens, each with its standard error.

The tokens of a document are not independent, but documents are. A figure is a ratio R = Σ a / Σ b
of sums over documents d, and its error is the linearized estimate for clusters (Cochran, Sampling
Techniques, 1977, section 6.3), also known as the sandwich estimate:

    SE(R)² = D / (D − 1) · Σ_d (a_d − R b_d)² / (Σ_d b_d)²

A document that preparation has cut into several counts once where the rows separate domains, for
which it notes where each one is from. In other rows each part counts, which makes errors too small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, which is NaN where there is a single document."""

    value: float
    error: float


@dataclass(frozen=True)
class Score:
    """What was achieved on some masked tokens."""

    tokens: int
    accuracy: Estimate
    bits_per_character: Estimate


@dataclass(frozen=True)
class MaskedTokens:
    """The masked tokens of held-out text and what was predicted for them, (tokens,) each.

    Attributes:
        labels: the original ids.
        predicted: the ids that were predicted.
        nats: the cross-entropy of the original ids.
        characters: how many characters the original ids stand for.
        documents: the number of the document that a token belongs to.
    """

    labels: np.ndarray
    predicted: np.ndarray
    nats: np.ndarray
    characters: np.ndarray
    documents: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(tokens,) bool: whether the original id was predicted."""
        return self.predicted == self.labels

    def score(self, chosen: np.ndarray | None = None) -> Score:
        """The figures of all tokens, or of those that a (tokens,) bool chooses."""
        if chosen is None:
            chosen = np.ones(len(self.labels), dtype=bool)
        documents, right = self.documents[chosen], self.right[chosen]
        bits = self.nats[chosen] / math.log(2)
        return Score(
            tokens=int(chosen.sum()),
            accuracy=ratio(right, np.ones(len(right)), documents),
            bits_per_character=ratio(bits, self.characters[chosen], documents),
        )

    def character_accuracy(self, spellings: Sequence[str]) -> Estimate:
        """The share of masked characters that the predicted tokens spell in their place.

        It is fair between vocabularies, as bits per character are: a wrong token counts for the
        characters that it has in common with the right one, place by place. A character that is
        spelled in bytes is right if all of its bytes are.

        Args:
            spellings: the text of each id, see `pretraining.data.tokens.token_spellings`.
        """
        found = np.where(self.right, self.characters, 0)
        for index in np.flatnonzero(~self.right & (self.characters > 0)):
            true, guess = spellings[self.labels[index]], spellings[self.predicted[index]]
            found[index] = sum(a == b for a, b in zip(true, guess, strict=False))
        # A token of no characters is a further byte of the character before it.
        heads = np.flatnonzero(self.characters > 0)
        further = np.flatnonzero(~self.right & (self.characters == 0))
        before = np.searchsorted(heads, further) - 1
        found[heads[before[before >= 0]]] = 0
        return ratio(found, self.characters, self.documents)


def ratio(above: np.ndarray, below: np.ndarray, documents: np.ndarray) -> Estimate:
    """Σ above / Σ below over tokens, (tokens,) each, and its error over documents."""
    _, number = np.unique(documents, return_inverse=True)
    above, below = np.bincount(number, above), np.bincount(number, below)
    total = max(below.sum(), 1)
    value = above.sum() / total
    count = len(above)
    squares = ((above - value * below) ** 2).sum()
    error = math.sqrt(count / (count - 1) * squares) / total if count > 1 else math.nan
    return Estimate(float(value), float(error))
