"""The training order: position in training -> row, as a pure function of the seed."""

import numpy as np
from torch.utils.data import Dataset

from pretraining.rows import Rows


class TrainingOrder(Dataset):
    """Positions 0, 1, 2, … of a training run; each epoch is its own permutation of the rows.

    Nothing here depends on workers, processes or what was read before, so a run that is resumed
    at a position goes on exactly as it would have.

    Args:
        rows: the row set.
        total_positions: rows to be drawn in the whole run, over however many epochs.
        seed: decides the permutations, together with the epoch.
    """

    def __init__(self, rows: Rows, total_positions: int, seed: int):
        self.rows = rows
        self.total_positions = total_positions
        self.seed = seed
        self._epoch = None

    def __len__(self) -> int:
        return self.total_positions

    def __getitem__(self, position: int) -> dict:
        """{"row": (seq_len,) uint16, "position": int}."""
        return {"row": self.rows[self.row_index(position)], "position": position}

    def row_index(self, position: int) -> int:
        """The row that is read at a position."""
        epoch, place = divmod(position, len(self.rows))
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._permutation = generator.permutation(len(self.rows))
            self._epoch = epoch
        return int(self._permutation[place])
