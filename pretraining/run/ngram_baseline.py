"""What counting alone achieves on the held-out rows: a unigram and a 5-gram, beside the model.

Each names the very tokens that are masked in the model's evaluation. The 5-gram sees the four true
tokens to the left of a place, which the model may find masked, and nothing to the right. It is
smoothed by interpolated Witten-Bell: with c(h, w) times w after h and t(h) different words there,

    P(w | h) = (c(h, w) + t(h) P(w | h without its first token)) / (c(h) + t(h))

down to the unigram, which counts every entry of the vocabulary once more than it occurs.
"""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import EvalPrediction

from data_collator_wwm import IGNORED, document_positions, split_row
from pretraining.data.rows import Rows
from pretraining.data.tokens import token_lengths
from pretraining.run.evaluation import (
    EvaluationRows,
    MaskedLanguageModelingMetrics,
    evaluation_collator,
)

BITS = 15  # of an id, so four tokens of context fit into one number of 64 bits
CHUNK_ROWS = 8192
BATCH = 256
MAX_ORDER = 5


def contexts_of(ids: np.ndarray, cls_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before each place, as one number, and whether they lie in the same document.

    Args:
        ids: (tokens,) ids of rows laid end to end.
        length: tokens of context, 1 to 4.

    Returns:
        (tokens,) int64 and (tokens,) bool.
    """
    keys = np.zeros(len(ids), dtype=np.int64)
    for distance in range(1, length + 1):
        keys[distance:] += ids[:-distance] << (BITS * (distance - 1))
    return keys, document_positions(ids, cls_id) >= length


class Counts:
    """How often which token follows which context, for the contexts that are asked for.

    Args:
        contexts: (contexts,) int64, sorted, without a double.
        length: tokens of a context.
    """

    def __init__(self, contexts: np.ndarray, length: int):
        self.contexts = contexts
        self.length = length
        self._pairs = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)

    def add(self, ids: np.ndarray, countable: np.ndarray, cls_id: int) -> None:
        """Counts rows laid end to end; `countable` says of which places the token counts."""
        keys, inside = contexts_of(ids, cls_id, self.length)
        chosen = np.flatnonzero(inside & countable)
        found = np.searchsorted(self.contexts, keys[chosen])
        known = found < len(self.contexts)
        known[known] = self.contexts[found[known]] == keys[chosen][known]
        pairs = (found[known] << BITS) | ids[chosen[known]]
        new, counts = np.unique(pairs, return_counts=True)
        both = np.concatenate([self._pairs, new])
        self._pairs, place = np.unique(both, return_inverse=True)
        weights = np.concatenate([self._counts, counts])
        self._counts = np.bincount(place, weights, len(self._pairs)).astype(np.int64)

    def after(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that follow a context, and how often."""
        index = np.searchsorted(self.contexts, key)
        first, last = np.searchsorted(self._pairs, [index << BITS, (index + 1) << BITS])
        return self._pairs[first:last] & ((1 << BITS) - 1), self._counts[first:last]


def laid_out(rows: Rows) -> Iterator[np.ndarray]:
    """The ids of a row set, some thousand rows at a time, laid end to end."""
    for first in tqdm(range(0, len(rows), CHUNK_ROWS), desc="count", unit=f" × {CHUNK_ROWS} rows"):
        last = min(first + CHUNK_ROWS, len(rows))
        ids, _ = split_row(np.stack([rows[index] for index in range(first, last)]))
        yield ids.ravel()


def predict(train: Rows, ids: np.ndarray, places: np.ndarray, order: int) -> np.ndarray:
    """(places, 2): the token that an n-gram names at each place, and the true one's cost in nats.

    Args:
        ids: (tokens,) held-out rows laid end to end.
        places: (places,) where to predict.
        order: n, from 1 to 5.
    """
    special, size = train.manifest["special_token_ids"], train.manifest["vocab_size"]
    framing = [special[name] for name in ("cls_id", "sep_id", "pad_id")]
    keys, inside, counts = {}, {}, {}
    for length in range(1, order):
        keys[length], inside[length] = contexts_of(ids, special["cls_id"], length)
        wanted = np.unique(keys[length][places][inside[length][places]])
        counts[length] = Counts(wanted, length)
    unigram = np.ones(size)
    for chunk in laid_out(train):
        countable = ~np.isin(chunk, framing)
        unigram += np.bincount(chunk[countable], minlength=size)
        for each in counts.values():
            each.add(chunk, countable, special["cls_id"])
    unigram /= unigram.sum()

    predictions = np.empty((len(places), 2))
    for number, place in enumerate(tqdm(places, desc=f"{order}-gram", unit=" tokens")):
        chances = unigram
        for length in range(1, order):
            if not inside[length][place]:
                break
            tokens, occurrences = counts[length].after(keys[length][place])
            if not len(tokens):
                break
            kinds, total = len(tokens), occurrences.sum()
            chances = chances * (kinds / (total + kinds))
            chances[tokens] += occurrences / (total + kinds)
        predictions[number] = chances.argmax(), -np.log(chances[ids[place]])
    return predictions


def evaluate(train: Rows, held_out: Rows, tokenizer: Tokenizer, order: int) -> dict[str, float]:
    """The figures of `MaskedLanguageModelingMetrics` for an n-gram."""
    features = [EvaluationRows(held_out)[index] for index in range(len(held_out))]
    labels = evaluation_collator(held_out)(features)["labels"].numpy()
    ids, _ = split_row(np.stack([feature["row"] for feature in features]))
    masked = np.flatnonzero(labels.ravel() != IGNORED)
    predictions = np.zeros((*labels.shape, 2))
    predictions.reshape(-1, 2)[masked] = predict(train, ids.ravel(), masked, order)
    prediction = EvalPrediction(predictions=predictions, label_ids=labels)
    return MaskedLanguageModelingMetrics(token_lengths(tokenizer), held_out)(prediction)
