"""The YAML file that describes a pretraining run, read and checked before anything starts."""

import dataclasses
import difflib
import enum
import os
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from pretraining.plain_yaml import read_yaml, set_key

STAGES = (1, 2)

# TrainingArguments that follow from the run itself, and what decides them.
_DECIDED_ELSEWHERE = {
    "output_dir": "the key output_dir of the run",
    "seed": "the key seed of the run",
    "data_seed": "the key seed of the run",
    "learning_rate": "learning_rate.peak of the stage",
    "lr_scheduler_type": "learning_rate.schedule of the stage",
    "lr_scheduler_kwargs": "learning_rate of the stage",
    "warmup_steps": "learning_rate.warmup_steps of the stage",
    "num_train_epochs": "max_steps",
    "train_sampling_strategy": "the training order, which is a function of the seed",
    "remove_unused_columns": "the row format",
    "include_num_input_tokens_seen": "the training log",
    "dataloader_drop_last": "rows_per_step, which is divided evenly; held-out rows are all counted",
    "gradient_accumulation_steps": "rows_per_step of the stage and the number of processes",
    "batch_eval_metrics": "the held-out figures, which are of all rows together",
    "eval_do_concat_batches": "the held-out figures, which are of all rows together",
    "auto_find_batch_size": "rows_per_step of the stage and per_device_train_batch_size",
    "ignore_data_skip": "the training order, in which a resumed run goes on where it was",
    "logging_nan_inf_filter": "the guard, which stops at a loss that is not finite",
    "push_to_hub": "--push_to_hub REPO",
    "hub_model_id": "--push_to_hub REPO",
    "hub_strategy": "--push_to_hub REPO",
    "hub_always_push": "--push_to_hub REPO, which waits for each upload",
    "hub_revision": "--push_to_hub REPO, which uploads to the main branch",
    "resume_from_checkpoint": "--resume",
}


# Keys whose values may begin with ~.
_RUN_PATHS = ("model", "tokenizer", "output_dir")
_STAGE_PATHS = ("train_rows", "eval_rows", "init_from")


class RunConfigError(ValueError):
    """A run file that cannot work; the message names the file, the key and how to fix it."""


class Schedule(enum.Enum):
    """Of the learning rate, see `pretraining.run.schedules`."""

    DAMPED_COSINE = "damped_cosine"
    WSD = "wsd"


class Decay(enum.Enum):
    """How the learning rate falls at the end of a WSD."""

    LINEAR = "linear"
    SQRT = "sqrt"


class Masking(enum.Enum):
    """What is masked as a unit."""

    WORDS = "words"
    TOKENS = "tokens"


@dataclass
class LearningRate:
    """Learning rate of the stage. Rates are per step.

    Attributes:
        peak, minimum, warmup_steps: of both schedules.
        schedule: "damped_cosine" or "wsd".
        cycles, damping: see `pretraining.run.schedules.DampedCosine`.
        decay_share, decay: see `pretraining.run.schedules.WarmupStableDecay`.
    """

    peak: float
    minimum: float
    warmup_steps: int = 0
    schedule: Schedule = Schedule.DAMPED_COSINE.value
    cycles: int = 2
    damping: float = 1.0
    decay_share: float = 0.2
    decay: Decay = Decay.LINEAR.value


@dataclass
class Muon:
    """Muon for the matrices of the layers, see `pretraining.run.muon`.

    Attributes:
        peak: their learning rate at its peak. It follows the schedule of `learning_rate`, which
            AdamW has for all other parameters.
    """

    peak: float


@dataclass
class MaskRate:
    """Curriculum of the share of masked tokens, see `pretraining.run.schedules.mask_rate`."""

    minimum: float = 0.15
    maximum: float = 0.30
    warmup_steps: int = 0


@dataclass
class BatchWarmup:
    """Rows of a step grow from `rows` to the stage's `rows_per_step` in so many steps."""

    rows: int
    steps: int


@dataclass
class Stage:
    """One pretraining stage.

    Attributes:
        train_rows, eval_rows: folders written by `pretraining.prepare_corpus`.
        rows_per_step: rows of one optimizer step, over all processes and accumulated batches. The
            order and the schedules depend on it, and so stay the same on any number of processes.
        init_from: a model folder to start from. Stage 2 starts from stage 1 of the same run
            where this is left out; stage 1 then starts from fresh weights.
        learning_rate, mask_rate: the two schedules.
        masking: "words", or "tokens" to mask single tokens. Evaluation always masks words.
        muon: left out, `optim` of `training` updates all parameters.
        batch_warmup: smaller steps at first; left out, all steps are equal.
        training: any of transformers' TrainingArguments, on top of the run's.
    """

    train_rows: str
    rows_per_step: int
    learning_rate: LearningRate
    eval_rows: str | None = None
    init_from: str | None = None
    mask_rate: MaskRate = field(default_factory=MaskRate)
    masking: Masking = Masking.WORDS.value
    muon: Muon | None = None
    batch_warmup: BatchWarmup | None = None
    training: dict = field(default_factory=dict)


@dataclass
class Run:
    """A pretraining run of one or both stages.

    Attributes:
        model: JSON file with the configuration of a fresh model.
        tokenizer: folder that holds the tokenizer the rows were made with.
        output_dir: folder for checkpoints, logs and the finished model of each stage.
        seed: decides weights, training order and masks.
        training: TrainingArguments shared by the stages.
        stage1, stage2: the stages; one may be missing.
    """

    model: str
    tokenizer: str
    output_dir: str
    seed: int = 0
    training: dict = field(default_factory=dict)
    stage1: Stage | None = None
    stage2: Stage | None = None

    def stage(self, number: int) -> Stage:
        """The settings of stage 1 or 2.

        Raises:
            RunConfigError: if the run has no such stage.
        """
        stage = getattr(self, f"stage{number}")
        if stage is None:
            raise RunConfigError(f"the run file has no stage{number}; add it, or choose --stage.")
        return stage


def load_run(path: str, overrides: typing.Sequence[str] = ()) -> Run:
    """Reads a run file and applies overrides such as `stage1.training.max_steps=100`.

    Raises:
        RunConfigError: on a missing or broken file, an unknown or missing key, a value of the
            wrong type, a path that this Python's locale cannot express, or a TrainingArguments
            key that the run itself decides.
    """
    for argument in (path, *overrides):
        _check_locale(argument, "on the command line")
    try:
        values = read_yaml(Path(path), "model: configs/base.json")
        for override in overrides:
            set_key(values, override)
    except FileNotFoundError:
        raise RunConfigError(
            f"{path}: no such run file; configs/ has some to start from."
        ) from None
    except ValueError as error:
        raise RunConfigError(str(error)) from error
    run = _build(Run, values, path, "")
    for owner, keys in ((run, _RUN_PATHS), (run.stage1, _STAGE_PATHS), (run.stage2, _STAGE_PATHS)):
        for key in keys:
            if value := getattr(owner, key, None):
                setattr(owner, key, os.path.expanduser(value))
    run.training = _check_training(run.training, path, "training")
    for number in STAGES:
        if (stage := getattr(run, f"stage{number}")) is not None:
            stage.training = _check_training(stage.training, path, f"stage{number}.training")
    if run.stage1 is None and run.stage2 is None:
        raise RunConfigError(f"{path}: neither stage1 nor stage2 is there; add at least one.")
    return run


def _check_locale(text: str, where: str) -> None:
    """Refuses text that this Python's file names cannot hold, before a file is looked for."""
    try:
        os.fsencode(text)  # a path of the run file, in a locale without its characters
        text.encode("utf-8")  # an argument whose bytes Python could not decode
    except UnicodeEncodeError:
        raise RunConfigError(
            f"{where}: {text!a} cannot be used under the locale in force, whose file names are "
            f"{sys.getfilesystemencoding()}. Set PYTHONUTF8=1 or LC_ALL=C.UTF-8 and start again."
        ) from None


def _build(cls, values, path: str, prefix: str):
    """Builds a dataclass from a dict, naming the full key in every complaint."""
    if not isinstance(values, dict):
        raise RunConfigError(f"{path}: {prefix.rstrip('.')} must be a group of keys.")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise RunConfigError(f"{path}: unknown key {prefix}{key}.{_hint(key, hints)}")
    built = {}
    for item in dataclasses.fields(cls):
        name, value = f"{prefix}{item.name}", values.get(item.name)
        if value is not None:
            built[item.name] = _convert(value, hints[item.name], path, name)
        elif (item.default, item.default_factory) == (dataclasses.MISSING,) * 2:
            raise RunConfigError(f"{path}: the key {name} is missing.")
    return cls(**built)


# What is asked for where a value is of another type.
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

# Words for bool values that YAML 1.2 leaves as text.
_TRUE, _FALSE = {"yes", "on", "true"}, {"no", "off", "false"}


def _convert(value, kind, path: str, name: str):
    """A value of a run file as the type that its key has; `value` is not None.

    Raises:
        RunConfigError: if it cannot be meant; the message says what to write.
    """
    kinds = typing.get_args(kind) if _is_union(kind) else (kind,)
    kinds = [typing.get_origin(each) or each for each in kinds if each is not types.NoneType]
    enums = [each for each in kinds if isinstance(each, type) and issubclass(each, enum.Enum)]
    if dataclasses.is_dataclass(kinds[0]) and kinds[0].__module__ == __name__:
        return _build(kinds[0], value, path, f"{name}.")
    if enums:
        return _choose(value, enums[0], path, name)
    if type(value) in kinds:
        if isinstance(value, str) and kinds[0] is str:
            _check_locale(value, f"{path}: {name}")
        return value
    if bool in kinds and str(value).lower() in _TRUE | _FALSE:
        return str(value).lower() in _TRUE
    if type(value) is int and float in kinds:
        return float(value)
    if type(value) is float and int in kinds and value.is_integer():
        return int(value)
    wanted = [_WANTED.get(each, f"a {getattr(each, '__name__', each)}") for each in kinds]
    quotes = f'; put it in quotes: "{value}"' if str in kinds and not _is_group(value) else ""
    raise RunConfigError(f"{path}: {name} must be {' or '.join(wanted)}, got {value!r}{quotes}.")


def _is_union(kind) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _is_group(value) -> bool:
    return isinstance(value, dict | list)


def _choose(value, choices: type[enum.Enum], path: str, name: str) -> str:
    """One of the values of an enumeration; False is its "no"."""
    known = [each.value for each in choices]
    value = "no" if value is False else value
    if value in known:
        return value
    shown = ", ".join(map(str, known))
    raise RunConfigError(
        f"{path}: {name} must be one of {shown}, got {value!r}.{_hint(value, known)}"
    )


def _check_training(training: dict, path: str, prefix: str) -> dict:
    """TrainingArguments with each value as its type has it."""
    known = {item.name for item in dataclasses.fields(TrainingArguments) if item.init}
    hints = typing.get_type_hints(TrainingArguments)
    checked = {}
    for key, value in training.items():
        if key in _DECIDED_ELSEWHERE:
            raise RunConfigError(
                f"{path}: {prefix}.{key} is decided by {_DECIDED_ELSEWHERE[key]}; set it there."
            )
        if key not in known:
            raise RunConfigError(
                f"{path}: unknown key {prefix}.{key}; TrainingArguments has no such name."
                f"{_hint(key, known)}"
            )
        if value is not None:  # left empty
            checked[key] = _convert(value, hints[key], path, f"{prefix}.{key}")
    return checked


def _hint(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(key), sorted(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
