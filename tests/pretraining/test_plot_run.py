"""The picture of runs; that of a real run is drawn in tests/test_train_mlm.py."""

from pathlib import Path

from matplotlib.figure import Figure

from pretraining.plot_run import HELD_OUT, draw_evaluations


def test_each_bar_stands_at_its_domain_where_runs_have_others():
    evaluations = {
        0: {f"{HELD_OUT}/law": 2.0, f"{HELD_OUT}/news": 3.0},
        1: {f"{HELD_OUT}/news": 3.1, f"{HELD_OUT}/poems": 6.0},
    }
    axes = Figure().subplots(1, 2)
    draw_evaluations(axes, evaluations, [Path("one"), Path("other")])
    names = [label.get_text() for label in axes[1].get_yticklabels()]
    bars = {
        (names[int(bar.get_y() + bar.get_height() / 2 + 0.2)], round(bar.get_width(), 1))
        for bar in axes[1].patches
    }
    assert bars == {("law", 2.0), ("news", 3.0), ("news", 3.1), ("poems", 6.0)}
