"""Row sets packed for a journey: about half the size of the rows, unpacked with what Python has.

A packed set is a folder with the row set's manifest and `rows.xz`. In it each token, an id with its
word-start bit, is replaced by its rank among all tokens by frequency, so that the high byte says
much about the low one; LZMA is told that two bytes belong together. On Chinese rows that is a tenth
smaller than the texts themselves packed by LZMA or PPMd, and needs no segmenter to unpack.
"""

import itertools
import lzma
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pretraining.data.rows import MANIFEST, Rows, read_manifest, write_manifest, write_shards
from pretraining.files import replacing, write_json

PACKED = "rows.xz"

# Rows that stay together where only some of a set fit: neighbors are parts of one document.
BLOCK = 64

# What a manifest counts of the text: in proportion for some of the rows, added up for parts.
COUNTS = ("documents", "characters", "tokens")

# Values of a uint16; the table of ranks comes first in the file.
VALUES = 1 << 16

_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 27,
        "lc": 3,
        "lp": 1,
        "pb": 1,
    }
]

# What the compressor holds back until it is flushed is less than this.
HELD_BACK = 1 << 18


def pack_all(rows: Rows, folder: Path) -> int:
    """Packs a whole row set, its manifest and shards as they are; returns the bytes it takes."""
    _pack(rows, range(len(rows)), folder / PACKED, limit=None)
    write_json(folder / MANIFEST, rows.manifest)
    return size_of(folder)


def pack_some(
    rows: Rows, folder: Path, limit: int, seed: int, part: tuple[int, int] = (1, 1)
) -> int:
    """Packs as many rows as fit, in blocks drawn at random; returns their number.

    Args:
        limit: bytes.
        part: (i, n) draws from the i-th of n parts of the blocks.

    Raises:
        ValueError: if none fits.
    """
    blocks = np.random.default_rng(seed).permutation(-(-len(rows) // BLOCK))[part[0] - 1 :: part[1]]
    chosen = (
        index
        for block in blocks
        for index in range(block * BLOCK, min((block + 1) * BLOCK, len(rows)))
    )
    count = _pack(rows, chosen, folder / PACKED, limit)
    if not count:
        raise ValueError(f"{rows.folder}: not even {BLOCK} of its rows fit into {limit:,} bytes.")
    write_json(folder / MANIFEST, _manifest_of_some(rows.manifest, count))
    return count


def _manifest_of_some(manifest: dict, rows: int) -> dict:
    """The manifest of rows drawn at random from a set; counts of text are in proportion."""
    share = rows / manifest["rows"]
    kept = {key: value for key, value in manifest.items() if key not in ("domains", "shards")}
    kept |= {key: round(share * manifest[key]) for key in COUNTS}
    return {**kept, "rows": rows, "share_of_a_row_set": share, "shards": [{"rows": rows}]}


def _pack(rows: Rows, chosen: Iterable[int], file: Path, limit: int | None) -> int:
    """Writes `rows.xz`; stops before it gets larger than the limit, and returns the rows in it."""
    counts = np.zeros(VALUES, np.int64)
    for first in range(0, len(rows), BLOCK):
        block = [rows[index] for index in range(first, min(first + BLOCK, len(rows)))]
        counts += np.bincount(np.concatenate(block), minlength=VALUES)
    table = np.argsort(-counts, kind="stable").astype("<u2")
    ranks = np.empty(VALUES, ">u2")
    ranks[table] = np.arange(VALUES)
    table[counts[table] == 0] = 0
    compressor = lzma.LZMACompressor(filters=_FILTERS)
    count, written, chosen = 0, 0, iter(chosen)
    with replacing(file) as temporary, open(temporary, "wb") as packed:
        written += packed.write(compressor.compress(table.tobytes()))
        while block := [rows[index] for index in itertools.islice(chosen, BLOCK)]:
            data = ranks[np.concatenate(block)].tobytes()
            # A block takes less than its bytes, so that the limit holds whatever it contains.
            if limit is not None and written + len(data) + HELD_BACK > limit:
                break
            written += packed.write(compressor.compress(data))
            count += len(block)
        packed.write(compressor.flush())
    return count


def unpack(packed: Sequence[Path], folder: Path) -> dict:
    """Makes packed sets, parts of one, a row set again; returns its manifest.

    Raises:
        OSError, ValueError: if one is missing or damaged, the message names it; or if they are not
            parts of one row set.
    """
    manifests = [read_manifest(each) for each in packed]
    first = manifests[0]
    added_up = (*COUNTS, "share_of_a_row_set")
    known = {"format_version", "seq_len", "rows", "shards", *added_up}
    facts = {key: value for key, value in first.items() if key not in known}
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for part, (source, manifest) in enumerate(zip(packed, manifests, strict=True)):
        if facts != {key: value for key, value in manifest.items() if key not in known}:
            raise ValueError(f"{packed[0]} and {source} are not parts of one row set.")
        rows = _unpacked(source / PACKED, manifest)
        for number, shard in enumerate(manifest["shards"]):
            some = itertools.islice(rows, shard["rows"])
            name = f"rows-{part}-{number:05}"
            shards += [
                shard | each for each in write_shards(folder, name, some, manifest["seq_len"])
            ]
    facts |= {key: sum(each[key] for each in manifests) for key in added_up if key in first}
    return write_manifest(folder, first["seq_len"], shards, facts)


def _unpacked(file: Path, manifest: dict) -> Iterator[np.ndarray]:
    """The rows of `rows.xz`, (seq_len,) uint16 each."""
    row_bytes = 2 * manifest["seq_len"]
    try:
        with lzma.open(file) as content:
            table = np.frombuffer(content.read(2 * VALUES), "<u2").astype(np.uint16)
            for _ in range(manifest["rows"]):
                row = content.read(row_bytes)
                if len(row) < row_bytes:
                    raise ValueError("fewer rows than its manifest says")
                yield table[np.frombuffer(row, ">u2")]
            content.read(1)  # the end, where the checksum is
    except (EOFError, lzma.LZMAError, ValueError) as error:
        raise ValueError(f"{file}: damaged ({error}); pack the rows again.") from error


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
