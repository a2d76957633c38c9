"""What a run will take: memory and time, measured over a few steps, and its schedules drawn."""

import copy
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from matplotlib.figure import Figure
from transformers import Trainer, set_seed

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import IGNORED
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.order import TrainingOrder
from pretraining.machine import peak_memory
from pretraining.run.configuration import RunConfigError
from pretraining.run.flops import matrix_product_rate, synchronized
from pretraining.run.pictures import save_picture
from pretraining.run.progress import duration
from pretraining.run.settings import StageSettings
from pretraining.run.sharding import is_sharded
from pretraining.run.stage_data import StageData
from pretraining.run.token_cost import flops_of_a_token
from pretraining.run.trainer import make_trainer, summary

WARM_UP, MEASURED = 2, 5

# fp32 weights, gradients and AdamW's two moments.
BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class Measurement:
    """A short measurement of training.

    Attributes:
        seconds_per_step: of one optimizer step, with all of its accumulated batches, of which only
            the last adds up the gradients of all processes.
        tokens_per_second: real tokens, over all processes.
        peak_bytes: most memory of the process, or of its GPU, so far.
    """

    seconds_per_step: float
    tokens_per_second: float
    peak_bytes: int


def measure(
    settings: StageSettings, data: StageData, model: ChineseModernBertForMaskedLM
) -> Measurement:
    """Trains a few batches at the pace of the run and leaves nothing behind but a changed model.

    They are full: what a batch warm-up leaves out takes no time.
    """
    order = data.order
    full = TrainingOrder(order.rows, len(order), settings.stage.rows_per_step, order.seed)
    data = dataclasses.replace(data, order=full)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = copy.copy(settings.arguments)
        arguments.output_dir, arguments.report_to = scratch, []
        trainer = make_trainer(dataclasses.replace(settings, arguments=arguments), data, model, [])
        return _measure(trainer)


def _measure(trainer: Trainer) -> Measurement:
    device = trainer.args.device
    _enable_checkpointing(trainer)
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    batches, tokens = [], 0
    for batch in trainer.get_train_dataloader():
        batches.append(batch)
        if len(batches) == WARM_UP + MEASURED:
            break
    accumulated, processes = trainer.args.gradient_accumulation_steps, trainer.args.world_size
    differ = accumulated > 1 and processes > 1  # the last batch of a step, and those before it
    alone, together, updates = [], [], []
    for number, batch in enumerate(batches):
        masked = (batch["labels"] != IGNORED).sum()
        start = synchronized(device)
        if differ:
            with trainer.accelerator.no_sync(model):
                trainer.training_step(model, batch, masked)
        between = synchronized(device)
        trainer.training_step(model, batch, masked)
        middle = synchronized(device)
        optimizer.step()
        optimizer.zero_grad()
        end = synchronized(device)
        if number >= min(WARM_UP, len(batches) - 1):
            together.append(middle - between)
            alone.append(between - start if differ else together[-1])
            updates.append(end - middle)
            tokens += int(batch["attention_mask"].sum())
    medians = [statistics.median(seconds) for seconds in (alone, together, updates)]
    step = (accumulated - 1) * medians[0] + medians[1] + medians[2]
    per_batch = processes * tokens / len(together)
    return Measurement(step, accumulated * per_batch / step, peak_memory(device))


def _enable_checkpointing(trainer: Trainer) -> None:
    """Turns on, where it is asked for, what Trainer turns on when it trains."""
    # "gradient" is what transformers 5.20 still called it.
    kind = "activation" if hasattr(trainer.args, "activation_checkpointing") else "gradient"
    if getattr(trainer.args, f"{kind}_checkpointing"):
        options = dict(getattr(trainer.args, f"{kind}_checkpointing_kwargs") or {})
        own = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
        getattr(trainer.model, f"{kind}_checkpointing_enable")(options or None, **own)


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


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


def outlook(settings: StageSettings, data: StageData) -> str:
    """Steps, tokens, memory and time of a stage, from a short measurement on this machine.

    Raises:
        RunConfigError: if the model does not fit this machine.
    """
    device, processes = settings.arguments.device, settings.arguments.world_size
    with torch.device("meta"):
        parameters = ChineseModernBertForMaskedLM(settings.config).num_parameters()
    state = BYTES_PER_PARAMETER * parameters
    if is_sharded(settings.arguments):
        state //= processes
    if state > (there := memory_of(device)):
        raise RunConfigError(
            f"stage {settings.number}: weights, gradients and AdamW's moments take "
            f"{state / 2**30:.1f} GiB, and {device} has {there / 2**30:.1f} GiB. Choose a smaller "
            "model (configs/)."
        )
    set_seed(settings.run.seed)
    model = ChineseModernBertForMaskedLM(settings.config)
    measured = measure(settings, data, model)
    dtype = torch.bfloat16 if settings.arguments.bf16 else torch.float32
    products = processes * matrix_product_rate(settings.config, dtype, device)
    flops = operations(settings.config, data.order, settings.steps, settings.mask_rate)
    full_steps = data.order.drawn_before(settings.steps) / settings.stage.rows_per_step
    seconds = full_steps * measured.seconds_per_step
    return (
        f"{summary(settings, data, model, None)}\n"
        f"  memory: {state / 2**30:.1f} GiB for weights, gradients and AdamW in fp32; "
        f"{measured.peak_bytes / 2**30:.1f} GiB at the most, measured\n"
        f"  operations: {flops:.2e}, at {flops / seconds / products:.0%} of the rate of plain "
        f"matrix products ({products / 1e12:,.1f} TFLOP/s on {processes} × {device.type}), "
        "measured\n"
        f"  time: {measured.seconds_per_step:.2f} s a step, "
        f"{measured.tokens_per_second:,.0f} tokens/s, measured; "
        f"{duration(seconds)} for all, without evaluation"
    )


def draw_schedules(stages: Sequence[StageSettings], picture: Path) -> None:
    """Writes learning rate and mask rate over the steps of the stages, one after another."""
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
