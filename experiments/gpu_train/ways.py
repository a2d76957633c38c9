"""Ways to train on the GPU at hand, and how fast each is.

    python -m experiments.gpu_train.ways --way 0 --output SPEED.json [KEY=VALUE ...]

Each way is measured in a process of its own, which is this file as a script: a kernel that fails
can leave its process unable to use the GPU, and a compiler can hang. What was compiled stays on the
disk, so that the run that follows starts sooner.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer, TrainerCallback, set_seed

from experiments.gpu_train.pack import ROOT
from experiments.learning_per_hour.experiment import with_steps
from pretraining.files import read_json, write_json
from pretraining.run.configuration import load_run
from pretraining.run.flops import synchronized
from pretraining.run.settings import StageSettings, check_stage
from pretraining.run.stage_data import StageData, open_data
from pretraining.run.time_limit import run_at_most
from pretraining.run.trainer import make_model, make_trainer, summary

RUN_FILE = Path(__file__).with_name("run.yaml")

# Steps in which compilation and memory settle, and steps that are timed.
WARM_UP, TIMED = 10, 30

# What measuring a way may take; most of it is compiling.
MEASURING_SECONDS = 150


@dataclass(frozen=True)
class Way:
    """A way to train, of which the first that works is taken.

    Attributes:
        compiled: whether the layers' parts are compiled, by `model.compile()`, which starts sooner
            than one graph of the whole model (`torch_compile: true`).
        attention: the attention backend, or None for the model's choice.
    """

    name: str
    compiled: bool = False
    attention: str | None = None


WAYS = (
    Way("layers compiled", compiled=True),
    Way("not compiled"),
    Way("not compiled, sdpa", attention="sdpa"),
)


@dataclass(frozen=True)
class Speed:
    """What a way was measured at.

    Attributes:
        step_seconds: of an optimizer step.
        start_seconds: until the end of the warm-up, beyond what its steps take.
        compiled: whether layers are compiled.
    """

    step_seconds: float
    start_seconds: float
    compiled: bool

    @property
    def next_start_seconds(self) -> float:
        """What the next start will take: about half where the compiler finds its work on disk."""
        return self.start_seconds / 2 if self.compiled else self.start_seconds


class Clock(TrainerCallback):
    """Notes when each step is over."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(synchronized(args.device))


def settings_of(overrides: list[str], steps: int, stage: int = 1) -> StageSettings:
    """A stage's settings for a number of steps.

    Raises:
        OSError, ValueError: naming the file or key that cannot work.
    """
    overrides = with_steps(overrides, {stage: steps}, RUN_FILE)
    return check_stage(load_run(str(RUN_FILE), overrides), stage, alone=True)


def trainer_of(
    overrides: list[str],
    way: Way,
    steps: int,
    callbacks: list[TrainerCallback],
    stage: int = 1,
) -> tuple[Trainer, StageSettings, StageData]:
    """A Trainer that is ready, with a fresh model, or that of stage 1 for stage 2."""
    settings = settings_of(overrides, steps, stage)
    set_seed(settings.run.seed)
    data, model = open_data(settings), make_model(settings)
    if way.attention is not None:
        model.set_attn_implementation(way.attention)
    if way.compiled:
        model.compile()
    print(summary(settings, data, model, start=None), flush=True)
    return make_trainer(settings, data, model, callbacks), settings, data


def first_that_works(overrides: list[str]) -> tuple[Way, Speed, dict[str, str]]:
    """The first way that trains some steps, its speed, and why those before it do not.

    Raises:
        RuntimeError: if none does.
    """
    failures = {}
    for way in WAYS:
        try:
            return way, measured(overrides, way), failures
        except RuntimeError as error:
            print(f"{way.name}: {error}", flush=True)
            failures[way.name] = str(error)
    raise RuntimeError(f"no way to train works: {failures}")


def measured(overrides: list[str], way: Way) -> Speed:
    """What `speed_of` gives in a process of its own.

    Raises:
        RuntimeError: saying why, if the way does not work.
    """
    file = Path(load_run(str(RUN_FILE), overrides).output_dir, "speed.json").resolve()
    file.unlink(missing_ok=True)
    arguments = ["--way", str(WAYS.index(way)), "--output", str(file), *overrides]
    command = [sys.executable, "-u", "-m", "experiments.gpu_train.ways", *arguments]
    status = run_at_most(MEASURING_SECONDS, command, cwd=ROOT)
    if not file.exists():
        if status is None:
            raise RuntimeError(f"it was not measured within {MEASURING_SECONDS} s")
        raise RuntimeError(f"its process ended with status {status}")
    told = read_json(file)
    if "error" in told:
        raise RuntimeError(told["error"])
    return Speed(**told)


def speed_of(overrides: list[str], way: Way) -> Speed:
    """Trains some steps through all the schedules, so that the mask rate is that of a whole run."""
    clock, begun = Clock(), time.perf_counter()
    trainer, _, _ = trainer_of(overrides, way, WARM_UP + TIMED, [clock])
    trainer.train()
    return speed_from(begun, clock.times, way.compiled)


def speed_from(begun: float, ends: Sequence[float], compiled: bool) -> Speed:
    """The speed, from the times at which steps ended.

    A step's is the median, because compiling once more would take as long as many steps.
    """
    timed = itertools.pairwise(ends[WARM_UP - 1 :])
    step = statistics.median(end - start for start, end in timed)
    start = max(0.0, ends[WARM_UP - 1] - begun - WARM_UP * step)
    return Speed(step_seconds=step, start_seconds=start, compiled=compiled)


def in_short(error: Exception) -> str:
    """The kind and the message of an error, cut where it is long."""
    return f"{type(error).__name__}: {error}"[:500]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="of run.yaml")
    add("--way", type=int, required=True, help="its place among WAYS")
    add("--output", type=Path, required=True, help="JSON file for its speed, or what went wrong")
    arguments = parser.parse_args()
    try:
        told = dataclasses.asdict(speed_of(arguments.overrides, WAYS[arguments.way]))
    except Exception as error:  # whatever kernels and compilers raise
        traceback.print_exc()
        told = {"error": in_short(error)}
    write_json(arguments.output, told)


if __name__ == "__main__":
    main()
