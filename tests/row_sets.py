"""Row sets for tests, from rows at hand."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pretraining.data.rows import write_manifest, write_shards


def write_rows(folder: Path, rows: Iterable[np.ndarray], seq_len: int, facts: dict) -> dict:
    """Writes shards and manifest; returns the manifest."""
    shards = write_shards(folder, "rows", rows, seq_len)
    return write_manifest(folder, seq_len, shards, facts)
