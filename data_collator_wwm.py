"""Packed rows -> masked batches: whole-word masking at the rate of the moment.

A mask unit is the smallest run of tokens whose ends are both word borders, so a word is masked as
a whole or not at all. Which units are masked, and how, follows from the seed and the row's
position in training alone: it is the same with any number of workers and after any interruption.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# A packed row has one uint16 a token: 15 bits of id, and one that says "a word starts here".
WORD_START = np.uint16(1 << 15)
TOKEN_ID = np.uint16(WORD_START - 1)

# A longer run without a word border (a long Latin name, a line of signs) is masked in parts: one
# unit of that size would take up the whole budget of a row.
MAX_UNIT_TOKENS = 16

IGNORED = -100  # the label of a token that is not predicted

# Rows are masked together up to so many tokens, whose arrays stay in the processor's cache.
CACHED_TOKENS = 16_384

# Units that are looked at first for the last tokens of a budget.
NEAR = 64


def split_row(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint16 of any shape -> (token ids as int64, word starts as bool), of that shape."""
    return (row & TOKEN_ID).astype(np.int64), (row & WORD_START) != 0


def document_positions(ids: np.ndarray, cls_id: int) -> np.ndarray:
    """Each token's place in its document, int64 of the shape of the ids, which are rows."""
    begins = ids == cls_id
    begins[..., 0] = True
    first = np.flatnonzero(begins)
    places = np.arange(ids.size) - np.repeat(first, np.diff(first, append=ids.size))
    return places.reshape(ids.shape)


@dataclass
class DataCollatorForWholeWordMasking:
    """Masks whole words in packed rows.

    Exactly round(rate × maskable tokens) tokens of each row are masked. Units are drawn in random
    order until the budget is full; a unit that no longer fits is passed over. A masked unit is
    shown as [MASK] tokens, as random tokens or unchanged.

    Args:
        cls_id, sep_id, pad_id, mask_id: ids of the special tokens; none is ever masked.
        vocab_size, first_ordinary_id: random tokens are drawn from [first_ordinary_id, vocab_size).
        seed: decides everything random, together with the position.
        mask_rate: share of the maskable tokens to mask, or a function step -> share.
        replace: shares of the masked units shown as [MASK], as random tokens, unchanged.
    """

    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    vocab_size: int
    first_ordinary_id: int
    seed: int
    mask_rate: float | Callable[[int], float]
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)

    @classmethod
    def for_rows(cls, rows, **settings) -> "DataCollatorForWholeWordMasking":
        """A collator for a row set, which knows the ids; the settings are the other fields."""
        return cls(
            **rows.manifest["special_token_ids"],
            vocab_size=rows.manifest["vocab_size"],
            first_ordinary_id=rows.manifest["first_ordinary_id"],
            **settings,
        )

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Features {"row": (seq_len,) uint16, "position": int} -> tensors (batch, seq_len).

        `input_ids`; `attention_mask`, 0 at padding; `position_ids`, which restart with each
        document; `labels`, the original id where masked and -100 elsewhere. All int64.

        Raises:
            ValueError: on features without a row and position, or rows of unequal length.
        """
        for feature in features:
            if "row" not in feature or "position" not in feature:
                raise ValueError(
                    f"a feature has the keys {sorted(feature)}, but needs 'row' and 'position': "
                    "give Trainer a pretraining.data.order.TrainingOrder."
                )
        if len(lengths := {len(feature["row"]) for feature in features}) > 1:
            raise ValueError(f"rows of unequal length in one batch: {sorted(lengths)}.")
        ids, starts = split_row(np.stack([feature["row"] for feature in features]))
        inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
        at_once = max(1, CACHED_TOKENS // ids.shape[1])
        for first in range(0, len(ids), at_once):
            some = slice(first, first + at_once)
            self._mask(inputs[some], labels[some], starts[some], features[some])
        real = (ids != self.pad_id).astype(np.int64)
        batch = {
            "input_ids": inputs,
            "attention_mask": real,
            "position_ids": document_positions(ids, self.cls_id) * real,
            "labels": labels,
        }
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _mask(
        self, inputs: np.ndarray, labels: np.ndarray, starts: np.ndarray, features: list[dict]
    ) -> None:
        """Masks rows in place, all (rows, seq_len), at once but for the draws of each."""
        rows, seq_len = inputs.shape
        inputs, labels = inputs.reshape(-1), labels.reshape(-1)  # views
        starts[:, 0] = True  # no unit reaches from one row into the next
        maskable, first, lengths = self.units(inputs, starts.ravel())
        borders = maskable.searchsorted(np.arange(rows + 1) * seq_len).tolist()
        first_units = first.searchsorted(borders).tolist()
        bits = np.random.Philox(key=self.seed)
        generator, state = np.random.Generator(bits), bits.state
        chosen, draws, tokens = [], [], []
        for row, feature in enumerate(features):
            # Philox counts: each position's draws are at hand without a generator of its own.
            state["state"]["counter"][2] = feature["position"]
            bits.state = state
            rate = self.mask_rate(feature["step"]) if callable(self.mask_rate) else self.mask_rate
            budget = round(rate * (borders[row + 1] - borders[row]))
            of_row = lengths[first_units[row] : first_units[row + 1]]
            units, filled = _choose(of_row, budget, generator)
            draw = generator.random(len(units) + filled)
            chosen.append(units + first_units[row])
            draws.append(draw[: len(units)])
            tokens.append(draw[len(units) :])
        units, draw = np.concatenate(chosen), np.concatenate(draws)
        lengths = lengths[units]
        before = lengths.cumsum() - lengths  # tokens of the units chosen before each
        masked = maskable[np.arange(lengths.sum()) + np.repeat(first[units] - before, lengths)]
        as_mask, as_random = self.replace[0], self.replace[0] + self.replace[1]
        shown_as_mask = np.repeat(draw < as_mask, lengths)
        shown_as_random = np.repeat((draw >= as_mask) & (draw < as_random), lengths)

        labels[masked] = inputs[masked]
        inputs[masked[shown_as_mask]] = self.mask_id
        share = np.concatenate(tokens)[shown_as_random]
        ordinary = self.vocab_size - self.first_ordinary_id
        inputs[masked[shown_as_random]] = self.first_ordinary_id + (share * ordinary).astype(int)

    def units(self, ids: np.ndarray, starts: np.ndarray):
        """Maskable places of a row, which of these begin a unit, and its tokens, all int64.

        Rows laid end to end are read as one, because a frame lies between them.
        """
        special = (ids == self.cls_id) | (ids == self.sep_id) | (ids == self.pad_id)
        maskable = np.flatnonzero(~special)
        if not len(maskable):
            return maskable, maskable, maskable
        begins = starts[maskable]
        begins[0] = True
        begins[1:] |= maskable[1:] - maskable[:-1] > 1  # a frame lies between
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=len(maskable))
        if lengths.max() > MAX_UNIT_TOKENS:
            within = np.arange(len(maskable)) - np.repeat(first, lengths)
            begins |= within % MAX_UNIT_TOKENS == 0
            first = np.flatnonzero(begins)
            lengths = np.diff(first, append=len(maskable))
        return maskable, first, lengths


def _choose(
    lengths: np.ndarray, budget: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Units in random order that fill the budget, exactly where units allow it.

    Args:
        lengths: (units,) their tokens.

    Returns:
        The chosen units, and their tokens together.
    """
    order = generator.permutation(len(lengths))
    filled = lengths[order[: budget + 1]].cumsum()  # a unit has at least one token
    cut = int(filled.searchsorted(budget, side="right"))
    chosen, rest = order[:cut], order[cut:]
    if not (left := budget - (int(filled[cut - 1]) if cut else 0)):
        return chosen, budget
    # What is left is less than one unit. One-token units are common, so the next few hold enough
    # of them nearly always; where they run out, the longest unit that still fits is next.
    near = rest[:NEAR]
    if len(single := near[lengths[near] == 1]) >= left:
        return np.concatenate([chosen, single[:left]]), budget
    more = []
    while left and len(fitting := rest[lengths[rest] <= left]):
        best = fitting[np.argmax(lengths[fitting])]
        more.append(best)
        left -= int(lengths[best])
        rest = rest[rest != best]
    return np.concatenate([chosen, np.array(more, dtype=order.dtype)]), budget - left
