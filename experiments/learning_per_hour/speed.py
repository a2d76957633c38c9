"""How fast a run trains beside another, on a machine that is shared with other work.

Both train in processes of their own, in one thread, and take turns, a few steps each, while the
other one waits. What counts is the processor time of a turn: what else the machine does changes it
little, and neighboring turns alike, so that their ratio can be trusted where their speeds cannot.
"""

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from experiments.learning_per_hour.experiment import BASE_RUN, MASKED_TOKENS, with_steps
from experiments.learning_per_hour.train_replaced_tokens import make_detection_trainer
from pretraining.run.configuration import load_run
from pretraining.run.settings import check_stage
from pretraining.run.stage_data import open_data
from pretraining.run.trainer import make_model, make_trainer

WARM_UP = 6  # steps in which torch.compile settles
STEPS_OF_A_TURN = 3
TURNS = 15
STEPS = WARM_UP + STEPS_OF_A_TURN * TURNS


@dataclass(frozen=True)
class Side:
    """A stage of a run to be timed.

    Attributes:
        overrides: of base.yaml.
        stage: 1 or 2; it starts from fresh weights.
        tokens: positions of a step.
        objective: what it is trained for.
    """

    overrides: tuple[str, ...]
    stage: int
    tokens: int
    objective: str = MASKED_TOKENS


class Turns(TrainerCallback):
    """Waits for its turn after the warm-up and after each turn, and sends its processor seconds."""

    def __init__(self, connection):
        self.connection = connection
        self.begun = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - WARM_UP
        if done >= 0 and done % STEPS_OF_A_TURN == 0:
            self.connection.send(time.process_time() - self.begun)
            self.connection.recv()
            self.begun = time.process_time()


def train_in_turns(side: Side, connection, log: Path) -> None:
    """Trains in a process of its own, whose output goes to a file.

    All the schedules are passed through, so that the mask rate has its mean over a run.
    """
    with open(log, "w", encoding="utf-8") as file, tempfile.TemporaryDirectory() as scratch:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        overrides = with_steps(side.overrides, {side.stage: STEPS})
        overrides += [f"output_dir={scratch}", "training.save_strategy=no"]
        settings = check_stage(load_run(str(BASE_RUN), overrides), side.stage, alone=False)
        settings = dataclasses.replace(settings, source=None)
        set_seed(settings.run.seed)
        torch.set_num_threads(1)  # several would wait for each other, which takes time, too
        data = open_data(settings)
        callbacks = [Turns(connection)]
        if side.objective == MASKED_TOKENS:
            trainer = make_trainer(settings, data, make_model(settings), callbacks)
        else:
            trainer = make_detection_trainer(settings, data, callbacks)
        trainer.train()


def speed_ratio(base: Side, other: Side, logs: Path) -> float:
    """Tokens/s of `other` over those of `base`: the median over neighboring turns.

    Args:
        logs: folder for what the two processes print.

    Raises:
        RuntimeError: if one of them fails; the message names its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sides = [
            stack.enter_context(_Process(side, logs / f"{name}.log"))
            for name, side in (("base", base), ("other", other))
        ]
        for side in sides:
            side.wait()
        seconds = [[side.turn() for side in sides] for _ in range(TURNS)]
    tokens = other.tokens / base.tokens
    return tokens * statistics.median(ours / theirs for ours, theirs in seconds)


class _Process:
    """A process that trains in turns; it ends with the context."""

    def __init__(self, side: Side, log: Path):
        context = multiprocessing.get_context("spawn")
        self.log = log
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=train_in_turns, args=(side, theirs, log), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def wait(self) -> float:
        """The seconds of the turn under way."""
        try:
            return self.connection.recv()
        except EOFError:
            raise RuntimeError(f"the speed could not be measured; see {self.log}") from None

    def turn(self) -> float:
        """Makes one turn; returns its seconds."""
        self.connection.send(None)
        return self.wait()
