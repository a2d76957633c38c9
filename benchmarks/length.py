"""Time per token against the length of the document, as a table and a picture."""

import functools
import statistics
from importlib.util import find_spec
from pathlib import Path

import torch

from common import interleaved
from inputs import padded_batch
from sides import BERT, MODERNBERT, Comparison, Shape, encoder

# The peers' dense masks and scores do not fit into memory beyond this length.
LONGEST = {MODERNBERT: 8192, BERT: 8192}


def cost_against_length(comparison: Comparison, lengths: list[int]) -> dict[str, dict[int, float]]:
    """Microseconds per token of inference in bf16, one document at a time.

    Returns:
        Label -> length -> microseconds, medians over the rounds. Prints the same as a table.
    """
    costs: dict[str, dict[int, float]] = {}
    device = comparison.device
    models = {
        label: side.ready(encoder(comparison.build(side)).to(torch.bfloat16))
        for label, side in comparison.sides.items()
    }
    for length in lengths:
        batch = padded_batch([length], device)
        runs = {
            label: functools.partial(model, **batch)
            for label, model in models.items()
            if length <= LONGEST.get(comparison.sides[label].name, length)
        }
        with torch.inference_mode():
            times = interleaved(runs, comparison.rounds, device)
        for label, seconds in times.items():
            costs.setdefault(label, {})[length] = statistics.median(seconds) / length * 1e6
    print("\n| microseconds per token | " + " | ".join(f"{n:,}" for n in lengths) + " |")
    print("|---|" + "---|" * len(lengths))
    for label, cost in costs.items():
        cells = (f"{cost[n]:,.1f}" if n in cost else "" for n in lengths)
        print(f"| {label} | " + " | ".join(cells) + " |")
    return costs


def draw(costs: dict[str, dict[int, float]], shape: Shape, picture: Path) -> None:
    """Writes the costs as a PNG file, or says that matplotlib is missing."""
    if find_spec("matplotlib") is None:
        print("\nNo picture: matplotlib is not installed.")
        return
    from matplotlib.figure import Figure

    from pretraining.run.pictures import save_picture

    figure = Figure(figsize=(8, 5))
    axis = figure.subplots()
    for label, cost in costs.items():
        axis.plot(list(cost), list(cost.values()), "o-", label=label)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens of the document")
    axis.set_ylabel("microseconds per token")
    axis.set_title(f"{shape.layers} layers × {shape.hidden}, bf16, inference")
    axis.grid(alpha=0.3)
    axis.legend()
    save_picture(figure, picture)
