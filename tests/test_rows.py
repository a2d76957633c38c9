"""Row sets: what is written is read, and what is damaged is refused by name."""

import pickle

import datasets
import numpy as np
import pytest

from pretraining import rows as rows_module
from pretraining.rows import WORD_START, RowsError, open_rows, split_row
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


def test_rows_lie_in_several_shards_where_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "SHARD_TOKENS", 4 * SEQ_LEN)
    write_rows(tmp_path / "rows", iter(some_rows(8)), SEQ_LEN, {})
    rows = open_rows(tmp_path / "rows")
    assert [shard["rows"] for shard in rows.manifest["shards"]] == [4, 4]
    assert all(np.array_equal(rows[i], row) for i, row in enumerate(some_rows(8)))


def test_datasets_opens_a_shard(folder):
    shard = datasets.Dataset.from_file(str(folder / "rows-00000.arrow"))
    assert shard.features["row"] == datasets.List(datasets.Value("uint16"), length=SEQ_LEN)
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


def test_a_folder_without_a_usable_manifest_is_refused(folder):
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RowsError, match=r"manifest.json: broken"):
        open_rows(folder)
    (folder / "manifest.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(RowsError, match="format_version 99, this code reads 1"):
        open_rows(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RowsError, match="is no row set"):
        open_rows(folder)


def test_an_empty_row_set_is_refused(tmp_path):
    write_rows(tmp_path / "rows", iter([]), SEQ_LEN, {})
    with pytest.raises(RowsError, match="the row set is empty"):
        open_rows(tmp_path / "rows")
