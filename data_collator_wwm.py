"""Packed rows -> masked batches: whole-word masking at the rate of the moment.

A mask unit is the smallest run of tokens whose ends are both word borders, so a word is masked as
a whole or not at all. Which units are masked, and how, follows from the seed and the row's
position in training alone: it is the same with any number of workers and after any interruption.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pretraining.rows import split_row

# A longer run without a word border (a long Latin name, a line of signs) is masked in parts: one
# unit of that size would take up the whole budget of a row.
MAX_UNIT_TOKENS = 16

IGNORED = -100


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
        rows_per_step: rows of one optimizer step, over accumulation and processes.
        mask_rate: step -> share of the maskable tokens to mask.
        replace: shares of the masked units shown as [MASK], as random tokens, unchanged.
    """

    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    vocab_size: int
    first_ordinary_id: int
    seed: int
    rows_per_step: int
    mask_rate: Callable[[int], float]
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)

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
                    "give Trainer a pretraining.order.TrainingOrder."
                )
        if len(lengths := {len(feature["row"]) for feature in features}) > 1:
            raise ValueError(f"rows of unequal length in one batch: {sorted(lengths)}.")
        ids, starts = split_row(np.stack([feature["row"] for feature in features]))
        inputs = ids.copy()
        labels = np.full_like(ids, IGNORED)
        for row, feature in enumerate(features):
            self._mask(inputs[row], labels[row], starts[row], feature["position"])
        first = np.where(ids == self.cls_id, np.arange(ids.shape[1]), 0)
        positions = np.arange(ids.shape[1]) - np.maximum.accumulate(first, axis=1)
        real = ids != self.pad_id
        batch = {
            "input_ids": inputs,
            "attention_mask": real.astype(np.int64),
            "position_ids": np.where(real, positions, 0),
            "labels": labels,
        }
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _mask(self, inputs: np.ndarray, labels: np.ndarray, starts: np.ndarray, position: int):
        """Masks one row in place."""
        generator = np.random.default_rng((self.seed, position))
        maskable, unit, unit_lengths = self.units(inputs, starts)
        budget = round(self.mask_rate(position // self.rows_per_step) * len(maskable))
        chosen = _choose(unit_lengths, budget, generator)
        draw = generator.random(len(unit_lengths))
        shown_as_mask = draw < self.replace[0]
        shown_as_random = ~shown_as_mask & (draw < self.replace[0] + self.replace[1])

        masked = maskable[chosen[unit]]
        labels[masked] = inputs[masked]
        inputs[maskable[(chosen & shown_as_mask)[unit]]] = self.mask_id
        random = maskable[(chosen & shown_as_random)[unit]]
        inputs[random] = generator.integers(self.first_ordinary_id, self.vocab_size, len(random))

    def units(self, ids: np.ndarray, starts: np.ndarray):
        """Maskable places of a row, the unit each belongs to, and the units' lengths.

        Rows laid end to end are read as one, because a frame lies between them.
        """
        special = (ids == self.cls_id) | (ids == self.sep_id) | (ids == self.pad_id)
        maskable = np.flatnonzero(~special)
        if not len(maskable):
            return maskable, maskable, maskable
        begins = starts[maskable]
        begins[0] = True
        begins[1:] |= np.diff(maskable) > 1  # a frame lies between
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=len(maskable))
        if lengths.max() > MAX_UNIT_TOKENS:
            within = np.arange(len(maskable)) - np.repeat(first, lengths)
            begins |= within % MAX_UNIT_TOKENS == 0
            lengths = np.diff(np.flatnonzero(begins), append=len(maskable))
        return maskable, begins.cumsum() - 1, lengths


def _choose(lengths: np.ndarray, budget: int, generator: np.random.Generator) -> np.ndarray:
    """(units,) bool: units in random order that fill the budget, exactly where units allow it."""
    chosen = np.zeros(len(lengths), dtype=bool)
    order = generator.permutation(len(lengths))
    filled = lengths[order].cumsum()
    cut = int(np.searchsorted(filled, budget, side="right"))
    chosen[order[:cut]] = True
    left = budget - (int(filled[cut - 1]) if cut else 0)
    rest = order[cut:]
    # What is left is less than one unit. One-token units are common, so they fill it nearly always;
    # where they run out, the longest unit that still fits is next.
    while left and len(fitting := rest[lengths[rest] <= left]):
        if len(single := fitting[lengths[fitting] == 1]) >= left:
            chosen[single[:left]] = True
            break
        best = fitting[np.argmax(lengths[fitting])]
        chosen[best] = True
        left -= int(lengths[best])
        rest = rest[~chosen[rest]]
    return chosen
