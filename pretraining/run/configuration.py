"""The YAML file that describes a pretraining run, read and checked before anything starts."""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import TrainingArguments

STAGES = (1, 2)

# TrainingArguments that follow from the run itself, and what decides them.
_DECIDED_ELSEWHERE = {
    "output_dir": "the key output_dir of the run",
    "seed": "the key seed of the run",
    "data_seed": "the key seed of the run",
    "learning_rate": "learning_rate.peak of the stage",
    "lr_scheduler_type": "learning_rate of the stage, always a damped cosine",
    "lr_scheduler_kwargs": "learning_rate of the stage",
    "warmup_steps": "learning_rate.warmup_steps of the stage",
    "num_train_epochs": "max_steps",
    "train_sampling_strategy": "the training order, which is a function of the seed",
    "remove_unused_columns": "the row format",
    "include_num_input_tokens_seen": "the training log",
    "gradient_accumulation_steps": "rows_per_step of the stage and the number of processes",
    "logging_nan_inf_filter": "the guard, which stops at a loss that is not finite",
    "push_to_hub": "--push_to_hub REPO",
    "hub_model_id": "--push_to_hub REPO",
    "hub_strategy": "--push_to_hub REPO",
    "resume_from_checkpoint": "--resume",
}


class RunConfigError(ValueError):
    """A run file that cannot work; the message names the file, the key and the mend."""


@dataclass
class LearningRate:
    """Damped cosine, see `pretraining.run.schedules.DampedCosine`. Rates are per step."""

    peak: float
    minimum: float
    warmup_steps: int = 0
    cycles: int = 2
    damping: float = 1.0


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
        batch_warmup: smaller steps at first; left out, all steps are equal.
        training: any of transformers' TrainingArguments, on top of the run's.
    """

    train_rows: str
    rows_per_step: int
    learning_rate: LearningRate
    eval_rows: str | None = None
    init_from: str | None = None
    mask_rate: MaskRate = field(default_factory=MaskRate)
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


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text, for want of a dot; here it is the number it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_run(path: str, overrides: typing.Sequence[str] = ()) -> Run:
    """Reads a run file and applies overrides such as `stage1.training.max_steps=100`.

    Raises:
        RunConfigError: on a missing or broken file, an unknown or missing key, a value of the
            wrong type, or a TrainingArguments key that the run itself decides.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise RunConfigError(
            f"{path}: no such run file; configs/ has some to start from."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise RunConfigError(f"{path}: expected keys such as model, tokenizer and stage1.")
    for override in overrides:
        _apply_override(values, override)
    run = _build(Run, values, path, "")
    _check_training(run.training, path, "training")
    for number in STAGES:
        if (stage := getattr(run, f"stage{number}")) is not None:
            _check_training(stage.training, path, f"stage{number}.training")
    if run.stage1 is None and run.stage2 is None:
        raise RunConfigError(f"{path}: neither stage1 nor stage2 is there; add at least one.")
    return run


def _apply_override(values: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RunConfigError(f"override {override!r} is not of the form key.key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RunConfigError(f"override {override!r}: {parent} is not a group of keys.")
    values[last] = yaml.load(value, Loader=_Loader)


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
        name = f"{prefix}{item.name}"
        if item.name not in values:
            required = (
                item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            )
            if required:
                raise RunConfigError(f"{path}: the key {name} is missing.")
            continue
        built[item.name] = _convert(values[item.name], hints[item.name], path, name)
    return cls(**built)


def _convert(value, kind, path: str, name: str):
    if isinstance(kind, types.UnionType):  # "X | None"
        if value is None:
            return None
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path, f"{name}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RunConfigError(f"{path}: {name} must be a {kind.__name__}, got {value!r}.")
    return value


def _check_training(training: dict, path: str, prefix: str) -> None:
    known = {item.name for item in dataclasses.fields(TrainingArguments) if item.init}
    for key in training:
        if key in _DECIDED_ELSEWHERE:
            raise RunConfigError(
                f"{path}: {prefix}.{key} is decided by {_DECIDED_ELSEWHERE[key]}; set it there."
            )
        if key not in known:
            raise RunConfigError(
                f"{path}: unknown key {prefix}.{key}; TrainingArguments has no such name."
                f"{_hint(key, known)}"
            )


def _hint(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(key), sorted(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
