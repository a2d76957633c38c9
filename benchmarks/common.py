"""What the benchmarks share: the repository's root, the machine's facts, and timing in turns.

The scripts run as `python benchmarks/NAME.py`, which puts this folder on `sys.path`, but not the
repository's root with the model and `pretraining`. Importing this file adds the root, so each
script imports it before anything from there.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pretraining.run.flops import synchronized

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call, including the work that it leaves to the device."""
    start = synchronized(device)
    run()
    return synchronized(device) - start


def interleaved(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device = CPU,
) -> dict[str, list[float]]:
    """Times every side once per round, in turns, so that a slower machine slows all of them.

    Returns:
        The seconds of each side in each round, without a first round that warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            elapsed = seconds(run, device)
            if number:
                times[name].append(elapsed)
    return times


def round_ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """The ratio within each round, which cancels what slows the machine down."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(round_ratios(numerators, denominators))
