"""What `finetuning.clue` is to run, from a YAML file and options."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetuning.baselines import BASELINES
from finetuning.models import RANDOM, Model
from finetuning.tasks import TASKS, Task, own_task
from pretraining.files import read_text

KEYS = (
    *("models", "tasks", "data", "output"),
    *("seeds", "train_examples", "dev_examples", "save_models"),
)
# What a run file may change about a task.
SETTINGS = {field.name for field in dataclasses.fields(Task)} - {"name", "read", "splits", "source"}


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        models, tasks: each model is fine-tuned on each task.
        data: the folder of the tasks' files.
        output: the folder of the results.
        seeds: runs of each model on each task, besides the grid.
        save_models: whether fine-tuned models are kept beside the results.
    """

    models: list[Model]
    tasks: list[Task]
    data: Path
    output: Path
    seeds: int = 5
    save_models: bool = False

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each model's weights, by its name."""
        return {model.name: model.fingerprint() for model in self.models}


def read_plan(file: Path | None, options: dict) -> Plan:
    """The plan of a YAML file, changed by options that are not None.

    Raises:
        ValueError: on a key that is unknown or missing, an unknown task, or two models of one name.
    """
    content = {}
    if file:
        try:
            content = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected keys such as {', '.join(KEYS[:4])}.")
    content |= {key: value for key, value in options.items() if value is not None}
    where = str(file or "options")
    if unknown := sorted(map(str, content.keys() - set(KEYS))):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(KEYS)}.")
    for key in ("models", "tasks", "data", "output"):
        if not content.get(key):
            raise ValueError(f"{where}: {key!r} is missing; give it there or as an option.")
    for key in ("seeds", "train_examples", "dev_examples"):
        value = content.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{where}: {key!r} must be an integer of at least 1, got {value!r}.")
    models = [_model(text) for text in content.pop("models")]
    names = [model.file_name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{where}: two models are called {twice!r}; name them, NAME=FOLDER.")
    sizes = {name: content.pop(name, None) for name in ("train_examples", "dev_examples")}
    tasks = [_task(entry, where, sizes) for entry in content.pop("tasks")]
    data, output = Path(content.pop("data")), Path(content.pop("output"))
    return Plan(models, tasks, data, output, **content)


def _model(text: str) -> Model:
    name, _, source = text.rpartition("=")
    if not name:
        name = source
        if source not in BASELINES:
            folder = Path(source.removeprefix(RANDOM))
            name = folder.resolve().name if folder.exists() else folder.name
            name += " (random weights)" if source.startswith(RANDOM) else ""
    return Model(source, name)


def _task(entry, where: str, sizes: dict) -> Task:
    """A task by its name, with settings of its own, or a new one with columns and files.

    `sizes` are the settings that all tasks have which do not set them.
    """
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{where}: a task is a name, or a name with its settings, got {entry!r}.")
    [(name, settings)] = entry.items()
    settings = sizes | (settings or {})
    columns, files = settings.pop("columns", None), settings.pop("files", None)
    if unknown := sorted(settings.keys() - SETTINGS):
        raise ValueError(
            f"{where}: task {name!r} has an unknown setting {unknown[0]!r}; there are columns, "
            f"files, {', '.join(sorted(SETTINGS))}."
        )
    for key in ("learning_rates", "labels"):
        if key in settings:
            kind = float if key == "learning_rates" else str
            settings[key] = tuple(map(kind, settings[key]))
    if columns and files:
        return own_task(name, columns, files, **settings)
    if name not in TASKS or columns or files:
        raise ValueError(
            f"{where}: unknown task {name!r}; there are {', '.join(TASKS)}. A task of your own "
            "needs both 'columns' and 'files'."
        )
    return dataclasses.replace(TASKS[name], **settings)
