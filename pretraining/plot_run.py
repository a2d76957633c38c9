"""Draws a run, or several beside each other, from their logs; a run may still be under way.

    python -m pretraining.plot_run runs/quickstart
    python -m pretraining.plot_run runs/one runs/other --output beside.png

Over the tokens seen: bits per character in training and on held-out rows, both schedules, gradient
norm and speed. Of the last evaluation: bits per character by place in the document and by domain.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from pretraining.command import readable_errors
from pretraining.run.held_out_groups import DOCUMENTS, POSITIONS
from pretraining.run.log import LOG_FILE
from pretraining.run.pictures import save_picture

HELD_OUT = "eval_bits_per_character"
BY_PLACE, BY_LENGTH = f"{HELD_OUT}{POSITIONS}", f"{HELD_OUT}{DOCUMENTS}"

# (what the log calls it, factor, what the axis says), one panel each.
PANELS = (
    ("bits_per_character", 1, "training: bits per character"),
    (HELD_OUT, 1, "held out (15 % masked): bits per character"),
    ("learning_rate", 1, "learning rate"),
    ("mask_rate", 100, "mask rate (%)"),
    ("grad_norm", 1, "gradient norm, before clipping"),
    ("tokens_per_second", 1, "tokens per second"),
)


def read_log(run_dir: Path) -> list[tuple[int, list[dict]]]:
    """(stage, log entries) of each stage that has begun.

    Raises:
        FileNotFoundError: if none has.
    """
    logs = []
    for stage in (1, 2):
        file = run_dir / f"stage{stage}" / LOG_FILE
        if file.exists():
            # A line that is being written has no end yet.
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            logs.append((stage, [json.loads(line) for line in lines if line.endswith("\n")]))
    if not any(entries for _, entries in logs):
        raise FileNotFoundError(f"{run_dir} holds no {LOG_FILE} yet; is it a run's output_dir?")
    return logs


def plot_runs(run_dirs: list[Path], picture: Path) -> None:
    """Writes the picture: a color for each run; stage II is dashed and follows stage I.

    Raises:
        FileNotFoundError: if a run has not begun.
    """
    logs = [read_log(run_dir) for run_dir in run_dirs]
    evaluated = any(HELD_OUT in entry for log in logs for _, entries in log for entry in entries)
    rows = 4 if evaluated else 3
    figure = Figure(figsize=(13, 3.75 * rows))
    axes = figure.subplots(rows, 2)
    last = {}  # the last evaluation of each run that has one
    for number, (run_dir, stages) in enumerate(zip(run_dirs, logs, strict=True)):
        before, color = 0, f"C{number}"
        for stage, entries in stages:
            for axis, (name, factor, _) in zip(axes.flat, PANELS, strict=False):
                points = [
                    ((before + entry["num_input_tokens_seen"]) / 1e6, factor * entry[name])
                    for entry in entries
                    if name in entry
                ]
                if not points:
                    continue
                label = f"{run_dir}, stage {stage}"
                style = {"color": color, "linestyle": "-" if stage == 1 else "--", "label": label}
                style["marker"] = "o" if name == HELD_OUT else ""
                axis.plot(*zip(*points, strict=True), **style)
            before += max((entry["num_input_tokens_seen"] for entry in entries), default=0)
        evaluations = [entry for _, log in stages for entry in log if HELD_OUT in entry]
        if evaluations:
            last[number] = evaluations[-1]
    for axis, (_, _, title) in zip(axes.flat, PANELS, strict=False):
        axis.set_title(title)
        axis.set_xlabel("million tokens")
    axes[0, 0].legend(fontsize="small")
    if evaluated:
        draw_evaluations(axes[3], last, run_dirs)
        axes[3, 0].set_title("last evaluation, by place in the document: bits per character")
        axes[3, 0].tick_params(axis="x", rotation=30)
        axes[3, 1].set_title("last evaluation, by domain: bits per character")
    else:
        axes.flat[1].set_visible(False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    save_picture(figure, picture)


def draw_evaluations(axes, evaluations: dict[int, dict], run_dirs: list[Path]) -> None:
    """Bits per character by place as lines, and by domain as bars beside those of other runs.

    Without domains their panel is left out.

    Args:
        axes: two, for places and for domains.
        evaluations: the log's entry by the run's number in `run_dirs`.
    """
    by_domain = {}
    for number, entry in evaluations.items():
        bits = {key: value for key, value in entry.items() if key.startswith(f"{HELD_OUT}/")}
        places = {key: value for key, value in bits.items() if key.startswith(BY_PLACE)}
        names = [key.removeprefix(BY_PLACE) for key in places]
        style = {"color": f"C{number}", "label": str(run_dirs[number])}
        axes[0].plot(names, list(places.values()), "o-", **style)
        by_domain[number] = {
            key.removeprefix(f"{HELD_OUT}/"): value
            for key, value in bits.items()
            if not key.startswith((BY_PLACE, BY_LENGTH))
        }
    # Runs may have been evaluated on other domains, or in another order.
    domains = list(dict.fromkeys(name for bits in by_domain.values() for name in bits))
    height = 0.8 / len(run_dirs)
    for number, bits in by_domain.items():
        at = [domains.index(name) + number * height for name in bits]
        axes[1].barh(at, list(bits.values()), height, color=f"C{number}")
    axes[1].set_yticks(range(len(domains)), domains, fontsize="small")
    # Rows tell domains apart where they were prepared with --separate_domains.
    axes[1].set_visible(bool(domains))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, help="output_dir of each run")
    parser.add_argument("--output", type=Path, help="picture (default: run.png of the first run)")
    arguments = parser.parse_args()
    picture = arguments.output or arguments.run_dirs[0] / "run.png"
    with readable_errors("plot_run"):
        plot_runs(arguments.run_dirs, picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
