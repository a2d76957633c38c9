"""Draws a run: loss, learning rate and mask rate over the steps of its stages.

python -m pretraining.plot_run runs/quickstart
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from pretraining.pictures import save_picture


def read_history(run_dir: Path) -> list[tuple[int, list[dict]]]:
    """(stage, log entries) of each finished stage.

    Raises:
        FileNotFoundError: if no stage of the run is finished.
    """
    histories = []
    for stage in (1, 2):
        log = run_dir / f"stage{stage}" / "final" / "training_log.json"
        if log.exists():
            histories.append((stage, json.loads(log.read_text(encoding="utf-8"))))
    if not histories:
        raise FileNotFoundError(f"{run_dir}: no finished stage; run train_mlm.py first.")
    return histories


def plot_run(run_dir: Path, picture: Path) -> None:
    """Writes the picture; steps of stage II follow those of stage I."""
    figure, (loss, rate, masks) = plt.subplots(3, 1, sharex=True, figsize=(9, 8))
    before = 0
    for stage, history in read_history(run_dir):
        training = [entry for entry in history if "mask_rate" in entry]
        held_out = [entry for entry in history if "eval_loss" in entry]
        steps = [before + entry["step"] for entry in training]
        colour = f"C{stage - 1}"
        loss.plot(steps, [entry["loss"] for entry in training], colour, label=f"stage {stage}")
        loss.plot(
            [before + entry["step"] for entry in held_out],
            [entry["eval_loss"] for entry in held_out],
            f"{colour}o--",
            label=f"stage {stage}, held out (15 % masked)",
        )
        rate.plot(steps, [entry["learning_rate"] for entry in training], colour)
        masks.plot(steps, [100 * entry["mask_rate"] for entry in training], colour)
        before += history[-1]["step"]
    loss.set_ylabel("loss (nats per masked token)")
    loss.legend()
    rate.set_ylabel("learning rate")
    masks.set_ylabel("mask rate (%)")
    masks.set_xlabel("step")
    for axis in (loss, rate, masks):
        axis.grid(alpha=0.3)
    save_picture(figure, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="output_dir of the run")
    parser.add_argument("--output", type=Path, help="picture (default: RUN_DIR/run.png)")
    arguments = parser.parse_args()
    picture = arguments.output or arguments.run_dir / "run.png"
    plot_run(arguments.run_dir, picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
