"""The training order: which row is read at which position, a pure function of the seed."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from pretraining.data.rows import Rows

# Shards are shuffled together up to this many tokens, 8 GiB. A permutation of all rows of a
# trillion tokens would take 9 GB in every process, and reads all over the disk would be slow.
GROUP_TOKENS = 1 << 32

# Seeds the order of all shards; a group's number seeds the shuffle within it.
_SHARD_ORDER = (1 << 32) - 1


class TrainingOrder(Dataset):
    """Positions 0, 1, 2, … of a training run; each epoch is its own permutation of the rows.

    The shards of a row set of more than 2³² tokens are divided into groups of that size, anew in
    each epoch. The groups are read one after another, each in a random order.

    Nothing here depends on workers, processes or what was read before, so a resumed run continues
    exactly as if it had never stopped.

    During batch warmup, a step has the usual number of positions, but only some of them, evenly
    spread, hold a row; the others are padding, on which the model spends nothing.

    Args:
        rows: the row set.
        total_positions: number of positions of the whole run, over all epochs.
        rows_per_step: positions of one optimizer step.
        seed: seeds the permutations, together with the epoch.
        warmup_rows: rows of the first step, which grow linearly to `rows_per_step`.
        warmup_steps: number of steps in which they grow; 0 for full steps from the start.
    """

    def __init__(
        self,
        rows: Rows,
        total_positions: int,
        rows_per_step: int,
        seed: int,
        warmup_rows: int = 0,
        warmup_steps: int = 0,
    ):
        self.rows = rows
        self.total_positions = total_positions
        self.rows_per_step = rows_per_step
        self.seed = seed
        grown = (rows_per_step - warmup_rows) * np.arange(warmup_steps) // max(1, warmup_steps)
        self._warming = warmup_rows + grown  # rows of each step of the warmup
        self._drawn_before = np.concatenate([[0], self._warming.cumsum()])
        self._group = self._prefetched = None

    def __len__(self) -> int:
        return self.total_positions

    def __getitem__(self, position: int) -> dict:
        """{"row": (seq_len,) uint16, "position": int, "step": int}."""
        index = self.row_index(position)
        if index is None:
            pad_id = self.rows.manifest["special_token_ids"]["pad_id"]
            row = np.full(self.rows.seq_len, pad_id, np.uint16)
        else:
            if self._prefetched is not self._group:
                self.rows.prefetch(self._group.shards, self._group.next_shards)
                self._prefetched = self._group
            row = self.rows[index]
        return {"row": row, "position": position, "step": position // self.rows_per_step}

    def positions(self, step: int) -> range:
        """The positions of an optimizer step."""
        return range(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def rows_of(self, step: int) -> int:
        """The number of rows that a step reads."""
        return int(self._warming[step]) if step < len(self._warming) else self.rows_per_step

    def drawn_before(self, step: int) -> int:
        """The number of rows that all steps before this one read."""
        warming = min(step, len(self._warming))
        return int(self._drawn_before[warming]) + (step - warming) * self.rows_per_step

    def row_index(self, position: int) -> int | None:
        """The index of the row at a position; None if batch warmup leaves the position empty."""
        step, place = divmod(position, self.rows_per_step)
        rows = self.rows_of(step)
        drawn, after = (rows * each // self.rows_per_step for each in (place, place + 1))
        if drawn == after:
            return None
        epoch, place = divmod(self.drawn_before(step) + drawn, len(self.rows))
        group = self._group
        if group is None or epoch != group.epoch or not group.first <= place < group.last:
            group = self._group = self._shuffle(epoch, place)
        return int(group.rows[place - group.first])

    def _shuffle(self, epoch: int, place: int) -> "_Group":
        """The group that contains a place of an epoch."""
        sizes = np.array([shard["rows"] for shard in self.rows.manifest["shards"]])
        shuffled = np.random.default_rng((self.seed, epoch, _SHARD_ORDER)).permutation(len(sizes))
        ends = sizes[shuffled].cumsum()
        numbers = (ends - sizes[shuffled]) * self.rows.seq_len // GROUP_TOKENS
        number = numbers[np.searchsorted(ends, place, side="right")]
        here = np.flatnonzero(numbers == number)
        following = numbers[here[-1] + 1 : here[-1] + 2]
        shards, next_shards = np.sort(shuffled[here]), shuffled[np.isin(numbers, following)]
        begins = sizes.cumsum() - sizes
        rows = np.concatenate([begins[shard] + np.arange(sizes[shard]) for shard in shards])
        np.random.default_rng((self.seed, epoch, int(number))).shuffle(rows)
        last = int(ends[here[-1]])
        return _Group(epoch, last - len(rows), last, rows, shards.tolist(), next_shards.tolist())


@dataclass(frozen=True)
class _Group:
    """Places [first, last) of an epoch, the rows read there, and their shards."""

    epoch: int
    first: int
    last: int
    rows: np.ndarray
    shards: list[int]
    next_shards: list[int]
