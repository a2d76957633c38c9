"""An experiment as its YAML file has it, and the run that a budget makes of it.

change: Muon for the layers' matrices        one line, for the leaderboard
on: muon-4.8e-3                              optional: the experiment that it adds to, not base
seeds: [1, 2]
overrides: {stage1.muon.peak: 2.4e-3}        keys of base.yaml
model: {num_hidden_layers: 9}                optional: keys of base.yaml's model configuration
time_shares: [0.5, 0.5]                      of stages 1 and 2, if there are both
speed_of: muon                               optional: an experiment that is equally fast
objective: replaced_tokens                   optional: in place of masked_tokens
held_out: {everyday: ROWS/…}                 optional: row sets in place of the protocol's
verdict: …                                   written by a person, after the runs
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pretraining.data.rows import read_manifest
from pretraining.files import read_json, write_json
from pretraining.plain_yaml import read_yaml
from pretraining.run.configuration import STAGES, Run, RunConfigError, load_run

FOLDER = Path(__file__).resolve().parent
BASE_RUN = FOLDER / "base.yaml"
BASE = "base"  # the experiment that changes nothing

ROWS = "ROWS/"

# Objective -> the command that trains a run file for it.
MASKED_TOKENS = "masked_tokens"
COMMANDS = {
    MASKED_TOKENS: ("train_mlm.py",),
    "replaced_tokens": ("-m", "experiments.learning_per_hour.train_replaced_tokens"),
}


@dataclass(frozen=True)
class Protocol:
    """What all experiments share.

    Attributes:
        minutes: machine time of a run's training steps.
        tokens_per_second: of the base run on the machine without other work, padding counted.
        held_out: name -> row set that finished models are evaluated on.
    """

    minutes: float
    tokens_per_second: float
    held_out: dict[str, str]


@dataclass(frozen=True)
class Experiment:
    """One change to the base run, or to that of another experiment; see above."""

    name: str
    change: str
    overrides: dict[str, object] = field(default_factory=dict)
    model: dict[str, object] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    on: str = BASE
    time_shares: tuple[float, ...] = (1.0,)
    speed_of: str | None = None
    objective: str = MASKED_TOKENS
    held_out: dict[str, str] = field(default_factory=dict)
    verdict: str = ""

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that it trains."""
        return STAGES[: len(self.time_shares)]


def read_protocol() -> Protocol:
    """The protocol.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    return _build(Protocol, FOLDER / "protocol.yaml", {})


def read_experiment(file: Path) -> Experiment:
    """An experiment, named like its file.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    read = _build(Experiment, file, {"name": file.stem})
    read = dataclasses.replace(
        read, seeds=tuple(read.seeds), time_shares=tuple(map(float, read.time_shares))
    )
    if not read.seeds or not 1 <= len(read.time_shares) <= len(STAGES):
        raise ValueError(f"{file}: seeds needs one seed or more, time_shares one or two shares.")
    if abs(sum(read.time_shares) - 1) > 1e-6 or min(read.time_shares) <= 0:
        raise ValueError(f"{file}: time_shares must be above 0 and sum to 1.")
    if read.objective not in COMMANDS:
        raise ValueError(f"{file}: objective must be one of {', '.join(COMMANDS)}.")
    if read.objective != MASKED_TOKENS and len(read.time_shares) > 1:
        raise ValueError(f"{file}: an objective of its own is trained in one stage.")
    return read


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """All experiments of a folder by name, the base first.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    files = sorted(folder.glob("*.yaml"), key=lambda file: (file.stem != BASE, file.stem))
    experiments = {file.stem: read_experiment(file) for file in files}
    if BASE not in experiments:
        raise ValueError(f"{folder / BASE}.yaml is missing: there is nothing to compare with.")
    for each in experiments.values():
        for key in ("on", "speed_of"):
            if getattr(each, key) not in (None, *experiments):
                raise ValueError(f"{folder}/{each.name}.yaml: {key} names no experiment.")
    return {name: _whole(each, experiments) for name, each in experiments.items()}


def _whole(
    experiment: Experiment, experiments: Mapping[str, Experiment], above: tuple[str, ...] = ()
) -> Experiment:
    """An experiment with all changes of those that it adds to.

    Raises:
        ValueError: if they go in a circle.
    """
    if experiment.on == BASE:
        return experiment
    if experiment.name in above:
        raise ValueError(f"{experiment.name}: the experiments below it (on) go in a circle.")
    below = _whole(experiments[experiment.on], experiments, (*above, experiment.name))
    changed = ("overrides", "model", "held_out")
    merged = {key: getattr(below, key) | getattr(experiment, key) for key in changed}
    if experiment.objective == MASKED_TOKENS:
        merged["objective"] = below.objective
    if experiment.time_shares == Experiment.time_shares:
        merged["time_shares"] = below.time_shares
    return dataclasses.replace(experiment, **merged)


def _build(cls, file: Path, known: dict):
    """A dataclass from a YAML file whose keys are its fields."""
    values = read_yaml(file)
    fields = {each.name for each in dataclasses.fields(cls)} - known.keys()
    if values.keys() - fields:
        raise ValueError(f"{file}: its keys must be among {', '.join(sorted(fields))}.")
    try:
        return cls(**known, **values)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error


def in_rows(value, rows: Path):
    """A value of a run file with ROWS replaced by the folder of row sets."""
    if isinstance(value, str) and value.startswith(ROWS):
        return str(rows / value.removeprefix(ROWS))
    return value


def overrides_of(experiment: Experiment, rows: Path, model_file: Path) -> list[str]:
    """The overrides of base.yaml that make the experiment's run, at base.yaml's steps.

    Args:
        rows: folder of row sets.
        model_file: where the model's configuration is written if the experiment changes it.
    """
    base = read_yaml(BASE_RUN)
    values = {
        "tokenizer": base["tokenizer"],
        "stage1.train_rows": base["stage1"]["train_rows"],
        **experiment.overrides,
    }
    if experiment.model:
        write_json(model_file, read_json(Path(base["model"])) | experiment.model)
        values["model"] = str(model_file)
    return [f"{key}={_as_yaml(in_rows(value, rows))}" for key, value in values.items()]


def _as_yaml(value) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def with_steps(
    overrides: Sequence[str], steps: Mapping[int, int], run_file: Path = BASE_RUN
) -> list[str]:
    """Overrides for runs of other lengths: their warm-ups take the same shares of the steps.

    Args:
        overrides: of the run file.
        steps: stage -> its steps.
        run_file: the run file, base.yaml unless given.

    Raises:
        RunConfigError: if the run lacks one of the stages or cannot work.
    """
    run, added = load_run(str(run_file), overrides), []
    for number, count in steps.items():
        stage, key = run.stage(number), f"stage{number}"
        written = stage_steps(run, number)
        counts = {
            "learning_rate.warmup_steps": stage.learning_rate.warmup_steps,
            "mask_rate.warmup_steps": stage.mask_rate.warmup_steps,
        }
        if stage.batch_warmup is not None:
            counts["batch_warmup.steps"] = stage.batch_warmup.steps
        added += [f"{key}.{name}={each * count // written}" for name, each in counts.items()]
        added.append(f"{key}.training.max_steps={count}")
    return [*overrides, *added]


def stage_steps(run: Run, number: int) -> int:
    """The steps of a stage as the run file has them.

    Raises:
        RunConfigError: if it does not say.
    """
    steps = run.stage(number).training.get("max_steps")
    if steps is None:
        raise RunConfigError(f"stage{number}.training.max_steps is missing.")
    return steps


def tokens_of_a_step(run: Run, number: int) -> int:
    """Positions of an optimizer step, padding counted."""
    stage = run.stage(number)
    return stage.rows_per_step * read_manifest(Path(stage.train_rows))["seq_len"]


def steps_of_a_budget(
    experiment: Experiment, run: Run, seconds: float, tokens_per_second: Mapping[int, float]
) -> dict[int, int]:
    """Stage -> how many steps it makes in its share of the time.

    Args:
        run: the experiment's, of any length.
        seconds: of machine time, for all stages.
        tokens_per_second: stage -> its speed, padding counted.
    """
    steps = {}
    for number, share in zip(experiment.stages, experiment.time_shares, strict=True):
        tokens = share * seconds * tokens_per_second[number]
        steps[number] = max(1, round(tokens / tokens_of_a_step(run, number)))
    return steps
