"""The training order is a pure function of seed and position."""

import pickle
import tracemalloc

import pytest

from pretraining.data import order as order_module
from pretraining.data.order import TrainingOrder


class FewRows(list):
    """A row set in memory, of one shard or several."""

    seq_len = 4

    def __init__(self, rows, shards=()):
        super().__init__(rows)
        self.manifest = {"shards": [{"rows": size} for size in shards or [len(self)]]}
        self.prefetched = []

    def prefetch(self, now, then):
        self.prefetched.append((now, then))


@pytest.fixture
def grouped(monkeypatch) -> TrainingOrder:
    """Three epochs of eight shards of five rows, two to a group."""
    monkeypatch.setattr(order_module, "GROUP_TOKENS", 40)
    return TrainingOrder(FewRows(range(40), [5] * 8), 120, rows_per_step=4, seed=3)


def test_each_epoch_reads_every_row_once():
    order = TrainingOrder(FewRows(range(7)), total_positions=21, rows_per_step=3, seed=0)
    epochs = [[order.row_index(position) for position in range(e * 7, e * 7 + 7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_does_not_depend_on_what_was_read_before():
    forwards = TrainingOrder(FewRows(range(50)), 200, rows_per_step=4, seed=1)
    backwards = pickle.loads(pickle.dumps(forwards))
    expected = [forwards.row_index(position) for position in range(200)]
    assert [backwards.row_index(position) for position in reversed(range(200))] == expected[::-1]


def test_another_seed_gives_another_order():
    first, second = (TrainingOrder(FewRows(range(50)), 50, 5, seed) for seed in (1, 2))
    assert [first.row_index(p) for p in range(50)] != [second.row_index(p) for p in range(50)]


def test_an_item_holds_its_row_its_position_and_its_step():
    order = TrainingOrder(FewRows("abc"), total_positions=6, rows_per_step=2, seed=0)
    assert len(order) == 6
    assert order[5] == {"row": "abc"[order.row_index(5)], "position": 5, "step": 2}
    assert order.positions(2) == range(4, 6)
    assert order.rows.prefetched == [([0], [])]


def test_batch_warmup_skips_no_row():
    """Of eight positions a step, two hold a row at first, and all eight from the third step on."""
    order = TrainingOrder(FewRows(range(40)), 64, 8, seed=0, warmup_rows=2, warmup_steps=2)
    steps = [[order.row_index(p) for p in range(8 * s, 8 * s + 8)] for s in range(8)]
    rows = [[row for row in step if row is not None] for step in steps]
    assert [len(step) for step in rows] == [2, 5, 8, 8, 8, 8, 8, 8]
    assert [order.rows_of(step) for step in range(8)] == [2, 5, 8, 8, 8, 8, 8, 8]
    plain = TrainingOrder(FewRows(range(40)), 64, 8, seed=0)
    drawn = [row for step in rows for row in step]
    assert drawn == [plain.row_index(position) for position in range(len(drawn))]
    assert order.drawn_before(8) == len(drawn)


def test_rows_are_spread_over_a_step_of_the_warmup():
    """So every process and accumulated batch gets its share."""
    order = TrainingOrder(FewRows(range(40)), 64, 8, seed=0, warmup_rows=4, warmup_steps=9)
    holds = [order.row_index(position) is not None for position in range(8)]
    assert [sum(pair) for pair in zip(holds[::2], holds[1::2], strict=True)] == [1, 1, 1, 1]


def test_a_large_row_set_is_read_in_groups_of_shards(grouped):
    """Each epoch reads every row once, ten at a time from two random shards."""
    epochs = [[grouped.row_index(40 * epoch + place) for place in range(40)] for epoch in range(3)]
    pairs = set()
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
        for first in range(0, 40, 10):
            shards = {row // 5 for row in epoch[first : first + 10]}
            assert len(shards) == 2
            pairs.add(tuple(shards))
            assert epoch[first : first + 10] != sorted(epoch[first : first + 10])
    assert len(pairs) > 4  # not the same two again and again


def test_groups_do_not_depend_on_what_was_read_before(grouped):
    expected = [grouped.row_index(position) for position in range(120)]
    again = TrainingOrder(FewRows(range(40), [5] * 8), 120, rows_per_step=4, seed=3)
    assert [again.row_index(position) for position in reversed(range(120))] == expected[::-1]


def test_shards_are_prefetched_for_this_group_and_the_next(grouped):
    for position in range(40):
        grouped[position]
    now, then = zip(*grouped.rows.prefetched, strict=True)
    assert sorted(shard for shards in now for shard in shards) == list(range(8))
    assert [sorted(shards) for shards in (*now[1:], [])] == [sorted(shards) for shards in then]


def test_a_trillion_tokens_take_no_more_memory_than_a_group():
    class ManyRows:
        seq_len = 1024
        manifest = {"shards": [{"rows": 1 << 17}] * 8192}

        def __len__(self):
            return 1 << 30

    tracemalloc.start()
    order = TrainingOrder(ManyRows(), 1 << 30, rows_per_step=4096, seed=0)
    rows = [order.row_index(position) for position in range(10**9, 10**9 + 4096)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows)) == 4096
    assert peak < 256 << 20
