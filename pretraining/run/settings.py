"""The settings of a stage, checked before anything is opened or written."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations

from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.data.rows import MAX_VOCAB_SIZE
from pretraining.files import read_json
from pretraining.run.complete_checkpoints import last_complete_checkpoint
from pretraining.run.configuration import LearningRate, Run, RunConfigError, Schedule, Stage
from pretraining.run.evaluation import METRICS
from pretraining.run.schedules import DampedCosine, WarmupStableDecay, mask_rate
from pretraining.run.sharding import is_sharded

# What accelerate settles once in a process.
_OF_THE_PROCESS = ("bf16", "torch_compile", "torch_compile_backend", "torch_compile_mode")


@dataclass(frozen=True)
class StageSettings:
    """One stage of a run. Make it with `check_stage`.

    Attributes:
        run: the run file.
        number: 1 or 2.
        source: model folder that the weights come from, or None for fresh weights.
        config: the model's shape.
        tokenizer: the one the rows were made with.
        arguments: for Trainer.
        learning_rate, mask_rate: functions of the step, from 0 to `steps - 1`.
    """

    run: Run
    number: int
    source: str | None
    config: ChineseModernBertConfig
    tokenizer: PreTrainedTokenizerBase
    arguments: TrainingArguments
    learning_rate: Callable[[int], float]
    mask_rate: Callable[[int], float]

    @property
    def stage(self) -> Stage:
        """What the run file says of this stage."""
        return self.run.stage(self.number)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.arguments.max_steps

    @property
    def seed(self) -> int:
        """Of training order and masks, which differ between the stages."""
        return self.run.seed + self.number

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs go."""
        return stage_folder(self.run, self.number)

    @property
    def final(self) -> Path:
        """Where the finished model goes."""
        return self.folder / "final"


def stage_folder(run: Run, number: int) -> Path:
    """Where the checkpoints and logs of a stage go."""
    return Path(run.output_dir) / f"stage{number}"


def check_stage(run: Run, number: int, alone: bool) -> StageSettings:
    """The settings of a stage.

    Args:
        number: 1 or 2.
        alone: whether no other stage of the run is trained before it.

    Raises:
        ValueError, OSError: naming the file or key that cannot work and how to fix it.
    """
    stage = run.stage(number)
    arguments = _training_arguments(run, number)
    steps = arguments.max_steps
    learning_rate = _learning_rate(stage.learning_rate, steps)
    if stage.muon is not None and is_sharded(arguments):
        raise RunConfigError(
            f"stage{number}.muon needs whole matrices, which FSDP divides among the processes. "
            "Leave muon out, or use DDP."
        )
    if stage.muon is not None and stage.muon.peak <= 0:
        raise RunConfigError(
            f"stage{number}.muon.peak must be above 0, got {stage.muon.peak}; leave muon out to "
            "train all parameters by training.optim."
        )
    masking = functools.partial(mask_rate, total_steps=steps, **vars(stage.mask_rate))
    masking(0)  # refuses contradictory settings now
    source = _source(run, number, alone)
    config_file = Path(run.model)
    if source is not None and Path(source, "config.json").exists():
        config_file = Path(source, "config.json")
    elif number == 2 and run.stage1 is not None and run.stage1.init_from is not None:
        config_file = Path(run.stage1.init_from, "config.json")  # which stage 1 will hand on
    config = _model_config(config_file)
    if config.vocab_size > MAX_VOCAB_SIZE:
        raise RunConfigError(
            f"{config_file}: vocab_size {config.vocab_size}, but rows hold ids of 15 bits, so "
            f"pretraining takes at most {MAX_VOCAB_SIZE} entries. Fine-tuning takes any number."
        )
    tokenizer = AutoTokenizer.from_pretrained(run.tokenizer, trust_remote_code=True)
    if len(tokenizer) != config.vocab_size:
        raise RunConfigError(
            f"{config_file}: vocab_size {config.vocab_size} does not fit the tokenizer in "
            f"{run.tokenizer}, which has {len(tokenizer)} entries."
        )
    if source is None:
        for name in ("pad", "cls", "sep", "mask"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
        config.bos_token_id, config.eos_token_id = config.cls_token_id, config.sep_token_id
    return StageSettings(run, number, source, config, tokenizer, arguments, learning_rate, masking)


def check_together(stages: Sequence[StageSettings]) -> None:
    """Refuses stages that one process cannot train one after another.

    Raises:
        RunConfigError: naming the key.
    """
    for name in _OF_THE_PROCESS:
        if len({getattr(stage.arguments, name) for stage in stages}) > 1:
            raise RunConfigError(
                f"training.{name} is one thing in one stage and another in the other; a process "
                "has one for both. Make them the same, or train --stage 1 and then --stage 2."
            )


def _learning_rate(settings: LearningRate, steps: int) -> Callable[[int], float]:
    common = {name: getattr(settings, name) for name in ("peak", "minimum", "warmup_steps")}
    if settings.schedule == Schedule.WSD.value:
        own = {"decay_share": settings.decay_share, "decay": settings.decay}
        return WarmupStableDecay(total_steps=steps, **common, **own)
    own = {"cycles": settings.cycles, "damping": settings.damping}
    return DampedCosine(total_steps=steps, **common, **own)


def _training_arguments(run: Run, number: int) -> TrainingArguments:
    stage, key = run.stage(number), f"stage{number}.training"
    values = run.training | stage.training
    # All parameters take part in every step, so DDP need not search for those that do not.
    values.setdefault("ddp_find_unused_parameters", False)
    if values.get("load_best_model_at_end") or values.get("save_strategy") == "best":
        # Trainer's choice, the loss, is a mean of the batches' means, and changes with their size.
        values.setdefault("metric_for_best_model", "bits_per_character")
    # Trainer takes every metric but a loss for one of which more is better.
    if "bits_per_character" in (values.get("metric_for_best_model") or ""):
        values.setdefault("greater_is_better", False)
    _check_values(run, number, values, key)
    try:
        arguments = TrainingArguments(
            output_dir=str(stage_folder(run, number)),
            seed=run.seed,
            learning_rate=stage.learning_rate.peak,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            include_num_input_tokens_seen="non_padding",
            logging_nan_inf_filter=False,  # a loss that is not finite stops the run
            **values,
        )
    except (TypeError, ValueError) as error:
        raise RunConfigError(f"{key}: {error}") from error
    _check_arguments(arguments, key)
    _check_packages(arguments, key)
    arguments.gradient_accumulation_steps = _accumulated(arguments, stage.rows_per_step, number)
    return arguments


def _check_values(run: Run, number: int, values: dict, key: str) -> None:
    """Refuses what Trainer would take, and would fail by later or take for something else."""
    if run.seed < 0:
        raise RunConfigError(f"seed must be at least 0, got {run.seed}.")
    if values.get("max_steps", 0) < 1:
        raise RunConfigError(
            f"{key}.max_steps is missing: it fixes the length of the stage, on which both "
            "schedules depend. Set it to at least 1."
        )
    if run.stage(number).eval_rows is None and values.get("eval_strategy", "no") != "no":
        raise RunConfigError(
            f"stage{number}.eval_rows is missing, but eval_strategy asks for evaluation."
        )
    for what in ("save_strategy", "eval_strategy", "logging_strategy"):
        if values.get(what) == "epoch":
            raise RunConfigError(
                f"{key}.{what}: to Trainer the whole stage is one epoch; set it to steps."
            )
    metric = values.get("metric_for_best_model", METRICS[0])
    if metric.removeprefix("eval_").split("/")[0] not in METRICS:
        raise RunConfigError(
            f"{key}.metric_for_best_model: {metric} is not measured; choose from "
            f"{', '.join(METRICS)}."
        )


def _check_arguments(arguments: TrainingArguments, key: str) -> None:
    """Refuses arguments that do not go with a run that can be resumed, or with each other."""
    if arguments.fp16:
        raise RunConfigError(
            f"{key}.fp16: a step whose gradients overflow would stop the run. Set bf16: true."
        )
    if arguments.bf16_full_eval or arguments.fp16_full_eval:
        kind = "bf16_full_eval" if arguments.bf16_full_eval else "fp16_full_eval"
        raise RunConfigError(
            f"{key}.{kind}: the evaluation at the end would round the weights that are then saved. "
            "Leave it out; bf16: true evaluates in bf16, too."
        )
    if arguments.accelerator_config.split_batches:
        raise RunConfigError(
            f"{key}.accelerator_config: split_batches would divide rows_per_step by the number of "
            "processes once more; leave it out."
        )
    if "num_steps" in (arguments.accelerator_config.gradient_accumulation_kwargs or {}):
        raise RunConfigError(
            f"{key}.accelerator_config: num_steps would change how many rows a step has; leave it "
            "out."
        )
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        raise RunConfigError(
            f"{key}.dataloader_persistent_workers needs dataloader_num_workers of at least 1."
        )
    if arguments.save_only_model:
        raise RunConfigError(f"{key}.save_only_model: such a checkpoint cannot be resumed.")
    if arguments.n_gpu > 1:
        raise RunConfigError(
            f"one process would use {arguments.n_gpu} GPUs. Start it with torchrun "
            f"--nproc_per_node {arguments.n_gpu}, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def _accumulated(arguments: TrainingArguments, rows: int, number: int) -> int:
    """Batches that a process accumulates in a step of so many rows."""
    batch, key = arguments.per_device_train_batch_size, f"stage{number}.training"
    for name, count in (
        (f"stage{number}.rows_per_step", rows),
        (f"{key}.per_device_train_batch_size", batch),
    ):
        if count < 1:
            raise RunConfigError(f"{name} must be at least 1, got {count}.")
    at_once = batch * arguments.world_size
    accumulated, left = divmod(rows, at_once)
    if left or not accumulated:
        raise RunConfigError(
            f"stage{number}.rows_per_step: {rows} rows cannot be divided evenly among "
            f"{arguments.world_size} processes in batches of {batch}. Make it a multiple of "
            f"{at_once}, or change {key}.per_device_train_batch_size."
        )
    return accumulated


def _check_packages(arguments: TrainingArguments, key: str) -> None:
    """Refuses an optimizer or a tracker whose package is not there."""
    available = get_available_reporting_integrations()
    if missing := [name for name in arguments.report_to if name not in available]:
        there = ", ".join(["none", *available])
        raise RunConfigError(
            f"{key}.report_to: {', '.join(missing)} is not a tracker that is installed here; "
            f"choose from {there}, or install its package."
        )
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ImportError as error:
        raise RunConfigError(f"{key}.optim: {error}") from error
    except ValueError:
        pass  # one that wants to see the model; Trainer will ask again


def _source(run: Run, number: int, alone: bool) -> str | None:
    """The model folder that the weights of a stage come from."""
    source = run.stage(number).init_from
    if source is not None and not Path(source, "config.json").exists():
        raise RunConfigError(
            f"stage{number}.init_from: {source} is not a model folder, it has no config.json."
        )
    if source is None and number == 2:
        source = str(stage_folder(run, 1) / "final")
        if alone and not Path(source, "model.safetensors").exists():
            # A stage that is under way needs what it began with no more.
            checkpoint = last_complete_checkpoint(stage_folder(run, 2))
            if checkpoint and Path(checkpoint, "model.safetensors").exists():
                return checkpoint
            raise RunConfigError(
                f"stage 2 starts from stage 1's weights, and {source} holds none. Train stage 1 "
                "first (--stage both), or name a model folder in stage2.init_from."
            )
    return source


def _model_config(file: Path) -> ChineseModernBertConfig:
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise RunConfigError(f"model: {file} does not exist.") from None
    try:
        return ChineseModernBertConfig.from_dict(content)
    except (TypeError, ValueError) as error:
        raise RunConfigError(f"{file}: {error}") from error
