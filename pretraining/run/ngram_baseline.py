"""What counting alone achieves on the held-out rows: a unigram and a 5-gram, beside the model.

Each names the very tokens that are masked in the model's evaluation. The 5-gram sees the four true
tokens to the left of a place, which the model may find masked, and nothing to the right. It is
smoothed by interpolated, modified Kneser-Ney (Chen and Goodman, 1999). With h' for the context h
without its first token,

    P(w | h) = max(c(h w) − D(c(h w)), 0) / c(h) + λ(h) P(w | h'),    c(h) = Σ_w c(h w)

where λ(h) is the share that the discounts D leave. For the longest contexts and those that begin
with [CLS], c(h w) is how often w follows h; for the others, how many different tokens precede h w.
Below the contexts of no token lies the uniform distribution over the vocabulary. D has a value for
counts of 1, of 2, and of 3 and more, estimated for each length of context from the contexts that
the held-out rows ask for, which are the only ones counted.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from data_collator_wwm import IGNORED, document_positions, split_row
from pretraining.data.rows import Rows
from pretraining.run.evaluation import evaluation_labels
from pretraining.run.held_out_groups import stored_ids

BITS = 15  # of an id, so four tokens of context fit into one number of 64 bits
LAST_BITS = (1 << BITS) - 1
CHUNK_ROWS = 8192
MAX_ORDER = 5

# More are not counted but sampled, rows at equal distances: time and memory grow with them.
COUNTED_TOKENS = 1 << 26


def contexts_of(ids: np.ndarray, cls_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before each place, as one number, and whether they lie in the same document.

    Args:
        ids: (tokens,) ids of rows laid end to end.
        length: tokens of context, 0 to 4.

    Returns:
        (tokens,) int64 and (tokens,) bool.
    """
    keys = np.zeros(len(ids), dtype=np.int64)
    for distance in range(1, length + 1):
        keys[distance:] += ids[:-distance] << (BITS * (distance - 1))
    return keys, document_positions(ids, cls_id) >= length


class Counts:
    """c(h w) of one length of context, for the contexts that are asked for.

    Args:
        contexts: (contexts,) int64, sorted, without a double.
        length: tokens of a context.
        cls_id: the token that begins a document.
        longest: whether there are no longer contexts.
    """

    def __init__(self, contexts: np.ndarray, length: int, cls_id: int, longest: bool):
        self.contexts = contexts
        self.length = length
        self.cls_id = cls_id
        # Nothing precedes them in their document, so their occurrences count.
        self._complete = np.full(len(contexts), longest)
        if length and not longest:
            self._complete = contexts >> (BITS * (length - 1)) == cls_id
        # Context, token and, where these count, the token before the context, in one number.
        self._triples = np.empty(0, dtype=np.int64)
        self._occurrences = np.empty(0, dtype=np.int64)

    def add(self, ids: np.ndarray, countable: np.ndarray) -> None:
        """Counts rows laid end to end; `countable` says of which places the token counts."""
        keys, inside = contexts_of(ids, self.cls_id, self.length)
        chosen = np.flatnonzero(inside & countable)
        found = np.searchsorted(self.contexts, keys[chosen])
        known = found < len(self.contexts)
        known[known] = self.contexts[found[known]] == keys[chosen[known]]
        found, chosen = found[known], chosen[known]
        before = np.where(self._complete[found], 0, ids[chosen - self.length - 1])
        new, occurrences = np.unique(
            ((found << BITS) | ids[chosen]) << BITS | before, return_counts=True
        )
        self._triples, self._occurrences = _summed(
            np.concatenate([self._triples, new]), np.concatenate([self._occurrences, occurrences])
        )

    def finish(self) -> None:
        """To be called once when all rows are counted."""
        pairs = self._triples >> BITS
        counts = np.where(self._complete[pairs >> BITS], self._occurrences, 1)
        self._pairs, self._counts = _summed(pairs, counts)
        del self._triples, self._occurrences
        self._discounts = discounts(self._counts)

    def after(self, key: int) -> tuple[np.ndarray, np.ndarray, float] | None:
        """What follows a context: tokens, their discounted shares of c(h), and λ(h).

        None if nothing is known to follow it.
        """
        index = np.searchsorted(self.contexts, key)
        first, last = np.searchsorted(self._pairs, [index << BITS, (index + 1) << BITS])
        if first == last:
            return None
        counts = self._counts[first:last]
        shares = (counts - self._discounts[np.minimum(counts, 3)]) / counts.sum()
        return self._pairs[first:last] & LAST_BITS, shares, 1 - shares.sum()


def _summed(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys without a double, and the sums of their counts."""
    order = np.argsort(keys, kind="stable")  # linear where sorted parts are merged
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts


def discounts(counts: np.ndarray) -> np.ndarray:
    """D for counts of 0, 1, 2, and 3 and more, from how many counts are 1, 2, 3 and 4.

    Where these numbers are too small for that, it is KenLM's fallback of 0.5, 1 and 1.5.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if (n[1:5] > 0).all():
        y = n[1] / (n[1] + 2 * n[2])
        estimated = np.array([k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)])
        if (estimated > 0).all() and (np.diff(estimated) <= 1).all():
            return np.array([0, *estimated])
    return np.array([0, 0.5, 1, 1.5])


def counted_ids(train: Rows, most_tokens: int = COUNTED_TOKENS) -> Iterator[np.ndarray]:
    """(tokens,) ids of some thousand rows at a time, laid end to end.

    Args:
        most_tokens: if the row set has more, rows at equal distances are taken.
    """
    number = min(len(train), max(1, most_tokens // train.seq_len))
    indices = np.linspace(0, len(train) - 1, number).astype(int)
    chunks = np.array_split(indices, math.ceil(number / CHUNK_ROWS))
    for chunk in tqdm(chunks, desc="count", unit=f" × {CHUNK_ROWS} rows"):
        ids, _ = split_row(np.stack([train[index] for index in chunk.tolist()]))
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
    keys, inside, levels = [], [], []
    for length in range(order):
        every, within = contexts_of(ids, special["cls_id"], length)
        keys.append(every[places])
        inside.append(within[places])
        wanted = np.unique(keys[length][inside[length]])
        levels.append(Counts(wanted, length, special["cls_id"], longest=length == order - 1))
    for chunk in counted_ids(train):
        countable = ~np.isin(chunk, framing)
        for level in levels:
            level.add(chunk, countable)
    for level in levels:
        level.finish()

    tokens, shares, left = levels[0].after(0)
    unigram = np.full(size, left / size)
    unigram[tokens] += shares
    predictions = np.empty((len(places), 2))
    for number, place in enumerate(tqdm(places, desc=f"{order}-gram", unit=" tokens")):
        chances = unigram
        for length in range(1, order):
            if not inside[length][number]:
                break
            if (follow := levels[length].after(keys[length][number])) is None:
                break
            tokens, shares, left = follow
            chances = chances * left
            chances[tokens] += shares
        predictions[number] = chances.argmax(), -np.log(chances[ids[place]])
    return predictions


def evaluate(train: Rows, held_out: Sequence[Rows], order: int) -> list[np.ndarray]:
    """What an n-gram predicts for the masked tokens of each row set, (tokens, 2) as `predict`."""
    masked = [evaluation_labels(rows) != IGNORED for rows in held_out]
    ids = np.concatenate([stored_ids(rows)[0].ravel() for rows in held_out])
    places = np.flatnonzero(np.concatenate([each.ravel() for each in masked]))
    ends = np.cumsum([each.sum() for each in masked])
    return np.split(predict(train, ids, places, order), ends[:-1])
