"""The picture of runs; that of a real run is drawn in tests/test_train_mlm.py."""

import dataclasses
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from pretraining.plot_run import BY_PLACE, HELD_OUT, draw_evaluations
from pretraining.run.pictures import save_picture


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


def test_domains_with_chinese_names_are_drawn_in_a_chinese_font_of_the_machine(
    tmp_path, monkeypatch
):
    upright = (font for font in fontManager.ttflist if font.fname.endswith("DejaVuSans.ttf"))
    some = next(upright)
    chinese = dataclasses.replace(some, name="Noto Sans CJK SC")
    monkeypatch.setattr(fontManager, "ttflist", [some, chinese])
    figure = Figure()
    axes = figure.subplots()
    axes.set_yticks([0], ["law"])
    save_picture(figure, tmp_path / "picture.png")
    (label,) = axes.get_yticklabels()
    assert label.get_fontfamily() == ["sans-serif", "Noto Sans CJK SC"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_rows_that_do_not_tell_domains_apart_have_no_panel_of_them():
    axes = Figure().subplots(1, 2)
    draw_evaluations(axes, {0: {f"{BY_PLACE}0-127": 2.0}}, [Path("one")])
    assert [axis.get_visible() for axis in axes] == [True, False]
