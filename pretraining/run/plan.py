"""What a run will take: memory and time, measured over a few steps, and its schedules drawn."""

import os
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import Trainer

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import IGNORED
from pretraining.data.order import TrainingOrder
from pretraining.run.flops import synchronised
from pretraining.run.log import flops_of_a_token
from pretraining.run.pictures import save_picture

WARM_UP, MEASURED = 2, 5

# fp32 weights, gradients and AdamW's two moments.
BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class Measurement:
    """A short measurement of training.

    Attributes:
        seconds_per_step: of one optimizer step, with all of its accumulated batches.
        tokens_per_second: real tokens, over all processes.
        peak_bytes: most memory of the process, or of its GPU, so far.
    """

    seconds_per_step: float
    tokens_per_second: float
    peak_bytes: int


def measure(trainer: Trainer) -> Measurement:
    """Trains a few batches, at the pace of the run; the trainer's model is spoilt for other use."""
    device = trainer.args.device
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    batches, tokens = [], 0
    for batch in trainer.get_train_dataloader():
        batches.append(batch)
        if len(batches) == WARM_UP + MEASURED:
            break
    seconds, updates = [], []
    for number, batch in enumerate(batches):
        masked = (batch["labels"] != IGNORED).sum()
        start = synchronised(device)
        trainer.training_step(model, batch, masked)
        middle = synchronised(device)
        optimizer.step()
        optimizer.zero_grad()
        end = synchronised(device)
        if number >= min(WARM_UP, len(batches) - 1):
            seconds.append(middle - start)
            updates.append(end - middle)
            tokens += int(batch["attention_mask"].sum())
    accumulated = trainer.args.gradient_accumulation_steps
    step = accumulated * statistics.median(seconds) + statistics.median(updates)
    per_batch = trainer.args.world_size * tokens / len(seconds)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measurement(step, accumulated * per_batch / step, peak)


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def operations(
    config: ChineseModernBertConfig,
    order: TrainingOrder,
    steps: int,
    mask_rate: Callable[[int], float],
) -> float:
    """Multiplications and additions of a whole stage, padding left out."""
    flops, masked_flops = flops_of_a_token(config, order, 0)
    masked = statistics.fmean(map(mask_rate, range(0, steps, max(1, steps // 1_000))))
    real = 1 - order.rows.manifest["padding_share"]
    return order.drawn_before(steps) * order.rows.seq_len * real * (flops + masked * masked_flops)


def duration(seconds: float) -> str:
    """Two units that a person would use: "3 d 4 h", "2 h 5 min", "45 s"."""
    seconds = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:,} {unit} {seconds % size // smaller} {name}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def draw_schedules(stages: Sequence, picture: Path) -> None:
    """Writes the learning rate and the mask rate over the steps of the stages, one after another.

    Args:
        stages: with `steps`, `learning_rate` and `mask_rate`, functions of the step.
    """
    figure = Figure(figsize=(9, 6))
    axes = figure.subplots(2, 1, sharex=True)
    before = 0
    for number, stage in enumerate(stages):
        steps = range(0, stage.steps, max(1, stage.steps // 2_000))
        for axis, schedule, unit in (
            (axes[0], stage.learning_rate, 1),
            (axes[1], stage.mask_rate, 100),
        ):
            values = [unit * schedule(step) for step in steps]
            axis.plot([before + step for step in steps], values, f"C{number}")
        before += stage.steps
    for axis, label in zip(axes, ("learning rate", "mask rate (%)"), strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("step")
    save_picture(figure, picture)
