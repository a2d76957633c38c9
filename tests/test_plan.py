"""The plan of a run."""

from types import SimpleNamespace

import pytest

from pretraining.plan import draw_schedules, duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3_599.9, "1 h 0 min"),
        (7_500, "2 h 5 min"),
        (86_400 * 31 + 3_600 * 4, "31 d 4 h"),
        (86_400 * 1_000, "1,000 d 0 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds, shown):
    assert duration(seconds) == shown


def test_schedules_are_drawn_one_stage_after_another(tmp_path):
    stage = SimpleNamespace(steps=5_000, learning_rate=lambda s: 1e-3, mask_rate=lambda s: 0.2)
    draw_schedules([stage, stage], tmp_path / "new" / "plan.png")
    assert (tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")
