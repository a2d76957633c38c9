"""Stops a run that goes wrong before it spoils its weights."""

import collections
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pretraining.files import write_json

STOPPED_FILE = "stopped.json"

# A loss is exploding when it is this many times the median of the logs before it.
EXPLODING = 2.0
REMEMBERED = 50
NEEDED = 5


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why, where, and what to do."""


class Guard(TrainerCallback):
    """Stops at gradients that are not finite, before they are applied, and at a loss that doubles.

    Leaves `stopped.json` with the step and the positions of its rows, for `--replay`. Every process
    sees the same gradients and losses, so all of them stop.

    Args:
        folder: of the stage.
        positions: step -> the positions of its rows in the training order.
    """

    def __init__(self, folder: Path, positions: Callable[[int], range]):
        self.folder = folder
        self.positions = positions
        self.losses = collections.deque(maxlen=REMEMBERED)

    def on_train_begin(self, args, state, control, **kwargs):
        (self.folder / STOPPED_FILE).unlink(missing_ok=True)
        self.losses.extend(entry["loss"] for entry in state.log_history if "loss" in entry)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not torch.isfinite(norm):
            self._stop(state, state.global_step, "the gradients are not finite")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        loss = logs["loss"]
        usual = statistics.median(self.losses) if len(self.losses) >= NEEDED else math.inf
        if not math.isfinite(loss) or loss > EXPLODING * usual:
            step = state.global_step - 1
            self._stop(state, step, f"the loss is {loss:.3f}, and was {usual:.3f} before")
        self.losses.append(loss)

    def _stop(self, state, step: int, reason: str) -> None:
        positions = self.positions(step)
        positions = [positions[0], positions[-1]]
        if state.is_world_process_zero:
            write_json(
                self.folder / STOPPED_FILE, {"step": step, "positions": positions, "reason": reason}
            )
        raise TrainingStopped(
            f"step {step}: {reason}. Its rows are at positions {positions[0]} to {positions[1]} of "
            f"the training order; --replay {step} shows them as the model saw them. The last "
            "checkpoint is untouched: go on from it with --resume and a lower learning rate or "
            "max_grad_norm."
        )
