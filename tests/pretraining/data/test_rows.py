"""Row sets: what is written is read, and what is damaged is refused by name."""

import json
import os
import pickle
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from data_collator_wwm import WORD_START, split_row
from pretraining.data import rows as rows_module
from pretraining.data.rows import RowsError, open_rows
from row_sets import write_rows

SEQ_LEN = 8


def some_rows(count: int = 10) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 1 << 16, (count, SEQ_LEN), dtype=np.uint16))


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "rows", iter(some_rows()), SEQ_LEN, {"tokens": 80})
    return tmp_path / "rows"


def test_rows_come_back_bit_for_bit(folder):
    rows = open_rows(folder)
    assert (len(rows), rows.seq_len, rows.manifest["tokens"]) == (10, SEQ_LEN, 80)
    for index, expected in enumerate(some_rows()):
        assert rows[index].dtype == np.uint16
        assert np.array_equal(rows[index], expected)


def test_a_path_from_home_is_opened(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert np.array_equal(open_rows(f"~/{folder.name}")[9], open_rows(folder)[9])


def test_rows_lie_in_several_shards_where_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "SHARD_TOKENS", 4 * SEQ_LEN)
    write_rows(tmp_path / "rows", iter(some_rows(8)), SEQ_LEN, {})
    rows = open_rows(tmp_path / "rows")
    assert [shard["rows"] for shard in rows.manifest["shards"]] == [4, 4]
    assert all(np.array_equal(rows[i], row) for i, row in enumerate(some_rows(8)))


def test_datasets_opens_a_shard(folder):
    shard = datasets.Dataset.from_file(str(folder / "rows-00000.arrow"))
    features = datasets.Features({"row": datasets.List(datasets.Value("uint16"), length=SEQ_LEN)})
    assert shard.features == features
    # The file says so itself, as if `datasets` had written it.
    written = pa.ipc.open_stream(folder / "rows-00000.arrow").schema
    assert written.equals(features.arrow_schema, check_metadata=True)
    assert shard[3]["row"] == some_rows()[3].tolist()


def test_opened_rows_pickle_as_a_path(folder):
    rows = open_rows(folder)
    rows[0]
    copy = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 2000
    assert np.array_equal(copy[9], rows[9])


def test_a_row_splits_into_ids_and_word_starts():
    row = np.array([2, 100 | WORD_START, 101, 3], dtype=np.uint16)
    ids, starts = split_row(row)
    assert ids.tolist() == [2, 100, 101, 3]
    assert starts.tolist() == [False, True, False, False]


def test_an_index_outside_is_refused(folder):
    with pytest.raises(IndexError, match="row 10 of 10"):
        open_rows(folder)[10]


def test_nothing_is_left_where_writing_breaks_off(tmp_path):
    def broken():
        yield from some_rows(2)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_rows(tmp_path / "rows", broken(), SEQ_LEN, {})
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_truncated_shard_is_named(folder):
    shard = folder / "rows-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(RowsError, match=r"rows-00000.arrow: truncated, \d+ bytes instead of"):
        open_rows(folder)


def test_a_damaged_byte_is_noticed(folder):
    shard = folder / "rows-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RowsError, match=r"rows-00000.arrow: damaged"):
        open_rows(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "rows-00000.arrow").unlink()
    with pytest.raises(RowsError, match=r"rows-00000.arrow: the shard is missing"):
        open_rows(folder)


@pytest.mark.parametrize("name", ["../rows.arrow", "/tmp/rows.arrow", ".rows.arrow", "rows.txt"])
def test_a_shard_lies_in_its_folder(folder, name):
    """Shards of a row set elsewhere are written and removed by the names that it gives them."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["shards"][0]["file"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RowsError, match="names of shards that are none"):
        open_rows(folder)


def test_a_folder_without_a_usable_manifest_is_refused(folder):
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RowsError, match=r"manifest.json: broken"):
        open_rows(folder)
    (folder / "manifest.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(RowsError, match="format_version 99, this code reads 2"):
        open_rows(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RowsError, match="is not a row set"):
        open_rows(folder)


def test_an_empty_row_set_is_refused(tmp_path):
    write_rows(tmp_path / "rows", iter([]), SEQ_LEN, {})
    with pytest.raises(RowsError, match="the row set is empty"):
        open_rows(tmp_path / "rows")


def test_what_was_checked_is_not_checked_again(folder, monkeypatch):
    """Hashing a trillion tokens takes a disk's whole rate for many minutes."""
    hashed = []
    monkeypatch.setattr(rows_module, "sha256_of", lambda file: hashed.append(file) or "?")
    with pytest.raises(RowsError, match="damaged"):
        open_rows(folder)
    monkeypatch.undo()
    open_rows(folder)
    monkeypatch.setattr(rows_module, "sha256_of", lambda file: hashed.append(file) or "?")
    open_rows(folder)
    assert len(hashed) == 1
    os.utime(folder / "rows-00000.arrow", ns=(0, 0))
    with pytest.raises(RowsError, match="damaged"):
        open_rows(folder)


def test_a_folder_that_may_only_be_read_is_opened_all_the_same(folder, monkeypatch):
    def refuse(*args):
        raise PermissionError("read only")

    monkeypatch.setattr(rows_module, "write_json", refuse)
    assert len(open_rows(folder)) == 10


def test_the_note_of_a_folder_that_may_only_be_read_lies_elsewhere(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(rows_module, "HF_HOME", str(tmp_path / "home"))
    write = rows_module.write_json

    def refuse(file, content):
        if file.parent == folder:
            raise PermissionError("read only")
        write(file, content)

    monkeypatch.setattr(rows_module, "write_json", refuse)
    open_rows(folder)
    monkeypatch.setattr(rows_module, "sha256_of", lambda file: "?")
    assert len(open_rows(folder)) == 10


def test_a_look_compares_sizes_only_and_leaves_nothing(folder, monkeypatch):
    before = sorted(folder.iterdir())
    monkeypatch.setattr(rows_module, "sha256_of", lambda file: "?")
    assert len(open_rows(folder, verify=False)) == 10
    assert sorted(folder.iterdir()) == before


def test_shards_that_are_read_no_more_are_closed(tmp_path, monkeypatch):
    """A run of months reads thousands, and each open one takes half a megabyte."""
    monkeypatch.setattr(rows_module, "SHARD_TOKENS", 4 * SEQ_LEN)
    write_rows(tmp_path, iter(some_rows(12)), SEQ_LEN, {})
    rows = open_rows(tmp_path)
    for index in (0, 4, 8):
        rows[index]
    rows.prefetch([1], [2])
    assert list(rows._shards) == [1]
    assert np.array_equal(rows[9], some_rows(12)[9])


def test_a_shard_that_goes_away_meanwhile_is_named(folder):
    rows = open_rows(folder)
    (folder / "rows-00000.arrow").write_bytes(b"")
    with pytest.raises(RowsError, match=r"rows-00000.arrow: can no longer be read"):
        rows[0]


class TestElsewhere:
    """Row sets that do not lie on this machine; `file://` stands for any protocol."""

    @pytest.fixture
    def source(self, tmp_path, monkeypatch) -> Path:
        """Three shards of four rows."""
        monkeypatch.setattr(rows_module, "SHARD_TOKENS", 4 * SEQ_LEN)
        monkeypatch.setattr(rows_module, "HF_HOME", str(tmp_path / "here"))
        monkeypatch.setattr(rows_module, "PAUSES", ())
        write_rows(tmp_path / "there", iter(some_rows(12)), SEQ_LEN, {})
        return tmp_path / "there"

    @staticmethod
    def held(rows) -> set[str]:
        return {file.name for file in rows.folder.glob("[!.]*.arrow")}

    @classmethod
    def becomes(cls, rows, shards: set[int]) -> bool:
        """Whether exactly these shards are held, as soon as the background has done its work."""
        wanted = {f"rows-{shard:05}.arrow" for shard in shards}
        until = time.monotonic() + 30
        while cls.held(rows) != wanted and time.monotonic() < until:
            time.sleep(0.01)
        return cls.held(rows) == wanted

    def test_they_are_the_same_rows(self, source):
        rows = open_rows(f"file://{source}")
        assert self.held(rows) == set()
        assert all(np.array_equal(rows[i], row) for i, row in enumerate(some_rows(12)))
        assert np.array_equal(pickle.loads(pickle.dumps(rows))[5], some_rows(12)[5])

    def test_a_shard_is_fetched_once_for_all_processes(self, source):
        open_rows(f"file://{source}")[0]
        (source / "rows-00000.arrow").unlink()
        assert np.array_equal(open_rows(f"file://{source}")[0], some_rows(12)[0])

    def test_what_is_read_next_is_fetched_and_what_was_read_is_dropped(self, source):
        rows = open_rows(f"file://{source}")
        rows.prefetch([0], [1])
        assert self.becomes(rows, {0, 1})
        rows.prefetch([1], [2])
        assert self.becomes(rows, {0, 1, 2})  # others may still be at the first
        rows.prefetch([2], [])
        assert self.becomes(rows, {1, 2})

    def test_a_shard_that_differs_from_the_manifest_is_refused(self, source):
        rows = open_rows(f"file://{source}")
        (source / "rows-00000.arrow").write_bytes(b"another")
        with pytest.raises(RowsError, match=r"rows-00000.arrow: not what the manifest says"):
            rows[0]
        assert self.held(rows) == set()

    def test_a_connection_that_fails_is_tried_again(self, source, monkeypatch):
        rows, failures = open_rows(f"file://{source}"), [OSError("reset")]
        fetch = LocalFileSystem.get_file

        def unsteady(self, *args, **kwargs):
            if failures:
                raise failures.pop()
            return fetch(self, *args, **kwargs)

        monkeypatch.setattr(LocalFileSystem, "get_file", unsteady)
        with pytest.raises(RowsError, match=r"rows-00000.arrow: cannot be fetched \(reset\)"):
            rows[0]
        monkeypatch.setattr(rows_module, "PAUSES", (0, 0))
        failures[:] = [OSError("reset"), OSError("reset")]
        assert np.array_equal(rows[0], some_rows(12)[0])
