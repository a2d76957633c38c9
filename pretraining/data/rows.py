"""Rows on disk: one uint16 a token, of which 15 bits are the id and one says "a word starts here".

A row is exactly `seq_len` of them: documents laid end to end, each framed `[CLS] … [SEP]`, the
rest `[PAD]`. It holds all that training needs to know: documents begin at its [CLS] tokens, mask
units at its word starts. A row set is a folder of Arrow shards, which `datasets` opens, and a
manifest with what they were made from. It lies on this machine or wherever fsspec reaches, the Hub
for instance (`hf://datasets/USER/NAME/FOLDER`).
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from pretraining.files import read_json, replacing, sha256_of, write_json

MAX_VOCAB_SIZE = 1 << 15  # ids have 15 bits, see data_collator_wwm.WORD_START

MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"[^./\\:][^/\\:]*\.arrow")  # a file, not hidden and no path
CHECKED = ".checked.json"
FORMAT_VERSION = 2
SHARD_TOKENS = 1 << 27  # 256 MiB
BATCH_ROWS = 256

# Seconds between the attempts to fetch a shard.
PAUSES = (1, 4, 16, 60)


class RowsError(ValueError):
    """A row set that cannot be used as it is."""


def write_shards(folder: Path, name: str, rows: Iterable[np.ndarray], seq_len: int) -> list[dict]:
    """Writes rows into shards NAME-00000.arrow, NAME-00001.arrow, …; each appears once complete.

    Args:
        rows: uint16 arrays (seq_len,).

    Returns:
        What the manifest holds of each shard: file, rows, bytes and SHA-256.
    """
    rows = iter(rows)
    shards = []
    while len(shards) == 0 or shards[-1]["rows"] == max(1, SHARD_TOKENS // seq_len):
        shard = _write_shard(folder / f"{name}-{len(shards):05}.arrow", rows, seq_len)
        if shard is None:
            break
        shards.append(shard)
    return shards


def _write_shard(file: Path, rows: Iterator[np.ndarray], seq_len: int) -> dict | None:
    rows = itertools.islice(rows, max(1, SHARD_TOKENS // seq_len))
    first = next(rows, None)
    if first is None:
        return None
    rows = itertools.chain((first,), rows)
    schema = _schema(seq_len)
    count = 0
    with (
        replacing(file) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            values = pa.array(np.concatenate(batch), type=pa.uint16())
            column = pa.FixedSizeListArray.from_arrays(values, seq_len)
            writer.write_batch(pa.record_batch([column], schema=schema))
            count += len(batch)
    size = file.stat().st_size
    return {"file": file.name, "rows": count, "bytes": size, "sha256": sha256_of(file)}


def _schema(seq_len: int) -> pa.Schema:
    """The Arrow schema of shards, with what `datasets` would note in it."""
    row = {"feature": {"dtype": "uint16", "_type": "Value"}, "length": seq_len, "_type": "List"}
    noted = json.dumps({"info": {"features": {"row": row}}})
    return pa.schema({"row": pa.list_(pa.uint16(), seq_len)}, {"huggingface": noted})


def write_manifest(folder: Path, seq_len: int, shards: list[dict], facts: dict) -> dict:
    """Makes a folder of shards a row set; returns the manifest.

    Args:
        facts: what else the manifest says, such as what the rows were made from.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "seq_len": seq_len,
        "rows": sum(shard["rows"] for shard in shards),
        **facts,
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a row set, without a look at the shards.

    Raises:
        RowsError: on a missing or broken manifest, or one of an empty row set.
    """
    file = f"{folder}/{MANIFEST}"
    try:
        with fsspec.open(file, encoding="utf-8-sig") as content:
            manifest = json.load(content)
    except (FileNotFoundError, NotADirectoryError):
        raise RowsError(
            f"{folder} is not a row set, it has no {MANIFEST}; make one with "
            "python -m pretraining.prepare_corpus."
        ) from None
    except ValueError as error:
        raise RowsError(f"{file}: broken ({error}); prepare the rows again.") from None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise RowsError(
            f"{file}: format_version {manifest.get('format_version')!r}, this code "
            f"reads {FORMAT_VERSION}; prepare the rows again."
        )
    if not manifest["rows"]:
        raise RowsError(f"{folder}: the row set is empty; prepare it from a larger corpus.")
    return manifest


def open_rows(folder: str | Path, verify: bool = True) -> "Rows":
    """Opens a row set.

    Every byte of one on this machine is checked against its manifest, once for each state of a
    file: a note says what was checked, beside the shards, or under HF_HOME where their folder may
    only be read. Of one elsewhere (`PROTOCOL://…`), the shards are fetched and checked when the
    training order comes to them.

    Args:
        verify: False compares sizes only, and leaves no note.

    Raises:
        RowsError: on a missing or broken manifest, or a missing, truncated or damaged shard.
    """
    manifest = read_manifest(folder)
    if not all(_SHARD_NAME.fullmatch(shard["file"]) for shard in manifest["shards"]):
        # A name that is a path would be written to, or removed, outside of the folder.
        raise RowsError(
            f"{folder}/{MANIFEST}: names of shards that are none; prepare the rows again."
        )
    if "://" in str(folder):
        return StreamedRows(_place_for(manifest), manifest, address=str(folder))
    folder = Path(folder).expanduser()  # as fsspec did for the manifest
    known, notes = {}, (folder / CHECKED, _place_for(manifest) / CHECKED)
    for note in notes:
        with contextlib.suppress(OSError, TypeError, ValueError):
            known |= dict(read_json(note))

    def check(shard: dict) -> list:
        file = folder / shard["file"]
        if not file.exists():
            raise RowsError(f"{file}: the shard is missing; copy or prepare the rows again.")
        state = file.stat()
        if state.st_size != shard["bytes"]:
            raise RowsError(
                f"{file}: truncated, {state.st_size} bytes instead of {shard['bytes']}; copy "
                "or prepare the rows again."
            )
        seen = [shard["sha256"], state.st_mtime_ns]
        if verify and known.get(shard["file"]) != seen and sha256_of(file) != shard["sha256"]:
            raise RowsError(
                f"{file}: damaged, its SHA-256 is not the manifest's; copy or prepare the rows "
                "again."
            )
        return seen

    shards = manifest["shards"]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        seen = list(pool.map(check, shards))
    checked = {shard["file"]: state for shard, state in zip(shards, seen, strict=True)}
    if verify and checked != known:
        for note in notes:
            with contextlib.suppress(OSError):  # a folder that may only be read
                write_json(note, checked)
                break
    return Rows(folder, manifest)


def _place_for(manifest: dict) -> Path:
    """Where shards from elsewhere are kept, a folder of its own for each row set."""
    name = hashlib.sha256(json.dumps(manifest["shards"]).encode()).hexdigest()[:16]
    return Path(HF_HOME) / "rows" / name


@dataclass
class Rows:
    """A row set, memory-mapped when first read, so that it pickles as a path and a manifest.

    Attributes:
        folder: where it lies.
        manifest: what it was made from, and its counts.
    """

    folder: Path
    manifest: dict
    _shards: dict = field(default_factory=dict, repr=False)

    def __getstate__(self):
        return {**self.__dict__, "_shards": {}}

    @property
    def seq_len(self) -> int:
        """Tokens of a row."""
        return self.manifest["seq_len"]

    def __len__(self) -> int:
        return self.manifest["rows"]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(shard["rows"] for shard in self.manifest["shards"]))

    def __getitem__(self, index: int) -> np.ndarray:
        """(seq_len,) uint16, read-only."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        if shard not in self._shards:
            self._shards[shard] = self._open(self.manifest["shards"][shard])
        row = index - self._ends[shard] + self.manifest["shards"][shard]["rows"]
        batch, place = divmod(row, BATCH_ROWS)
        return self._shards[shard][batch][place]

    def prefetch(self, now: Sequence[int], then: Sequence[int]) -> None:
        """Prepares for reading some shards now and others next; all others are closed."""
        self._shards = {number: self._shards[number] for number in now if number in self._shards}

    def _open(self, shard: dict) -> list[np.ndarray]:
        """The batches of a shard, (BATCH_ROWS, seq_len) uint16 each but the last, memory-mapped.

        Raises:
            RowsError: if it cannot be read any more.
        """
        file = self.folder / shard["file"]
        try:
            with pa.memory_map(str(file)) as content, pa.ipc.open_stream(content) as stream:
                columns = [batch.column("row") for batch in stream]
        except (OSError, pa.ArrowInvalid) as error:
            raise RowsError(
                f"{file}: can no longer be read ({error}); copy or prepare the rows again."
            ) from error
        return [column.flatten().to_numpy().reshape(-1, self.seq_len) for column in columns]


@dataclass
class StreamedRows(Rows):
    """A row set that lies elsewhere; this machine keeps the shards that are read now and next.

    All processes of a machine share what one of them has fetched.

    Attributes:
        folder: where the shards are held on this machine.
        address: where the row set lies, as fsspec takes it.
    """

    address: str = ""
    _before: list = field(default_factory=list, repr=False)

    def prefetch(self, now: Sequence[int], then: Sequence[int]) -> None:
        """Fetches these shards in the background, and drops those that are no longer needed."""
        super().prefetch(now, then)
        # What was read just before stays, because others may not be as far.
        held, self._before = {*self._before, *now, *then}, list(now)

        def fetch_and_drop():
            for number in (*now, *then):
                with contextlib.suppress(RowsError):  # raised again when the shard is read
                    self._fetch(self.manifest["shards"][number])
            for number, shard in enumerate(self.manifest["shards"]):
                if number not in held:
                    (self.folder / shard["file"]).unlink(missing_ok=True)

        threading.Thread(target=fetch_and_drop, daemon=True).start()

    def _open(self, shard: dict) -> list[np.ndarray]:
        self._fetch(shard)
        return super()._open(shard)

    def _fetch(self, shard: dict) -> None:
        """Makes sure that a shard is on this machine, complete and checked.

        Raises:
            RowsError: if it cannot be fetched, after some attempts.
        """
        file, source = self.folder / shard["file"], f"{self.address}/{shard['file']}"
        if file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            if file.exists():  # another process was faster
                return
            with replacing(file) as temporary:
                _download(source, temporary)
                if sha256_of(temporary) != shard["sha256"]:
                    raise RowsError(
                        f"{source}: not what the manifest says, its SHA-256 differs; upload the "
                        "row set again."
                    )


def _download(source: str, file: Path) -> None:
    """Copies a file from wherever fsspec reaches, with some attempts.

    Raises:
        RowsError: if all of them fail.
    """
    for pause in (*PAUSES, None):
        try:
            system, path = fsspec.core.url_to_fs(source)
            return system.get_file(path, str(file))
        except Exception as error:  # every protocol has errors of its own
            if pause is None:
                raise RowsError(
                    f"{source}: cannot be fetched ({error}); check the connection or copy the "
                    "rows to a disk."
                ) from error
            time.sleep(pause)
