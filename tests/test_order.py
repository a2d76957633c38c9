"""The training order is a pure function of seed and position."""

import pickle

from pretraining.order import TrainingOrder


class FewRows(list):
    """Stands for a row set: all that the order needs are a length and an index."""


def test_each_epoch_reads_every_row_once():
    order = TrainingOrder(FewRows(range(7)), total_positions=21, seed=0)
    epochs = [[order.row_index(position) for position in range(e * 7, e * 7 + 7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_does_not_depend_on_what_was_read_before():
    forwards = TrainingOrder(FewRows(range(50)), 200, seed=1)
    backwards = pickle.loads(pickle.dumps(forwards))
    expected = [forwards.row_index(position) for position in range(200)]
    assert [backwards.row_index(position) for position in reversed(range(200))] == expected[::-1]


def test_another_seed_gives_another_order():
    first, second = (TrainingOrder(FewRows(range(50)), 50, seed) for seed in (1, 2))
    assert [first.row_index(p) for p in range(50)] != [second.row_index(p) for p in range(50)]


def test_an_item_holds_its_row_and_its_position():
    order = TrainingOrder(FewRows("abc"), total_positions=6, seed=0)
    assert len(order) == 6
    assert order[4] == {"row": "abc"[order.row_index(4)], "position": 4}
