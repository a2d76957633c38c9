"""What `finetuning.clue` is to run, from a YAML file and options."""

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from finetuning.baselines import BASELINES
from finetuning.classification_data import label_text
from finetuning.models import RANDOM, Model
from finetuning.spans import BORDERS
from finetuning.tasks import LIMITED, TASKS, Task, own_task, task_like
from pretraining.files import is_path
from pretraining.plain_yaml import read_yaml

SIZES = tuple(f"{part}_examples" for part in LIMITED)
KEYS = ("models", "tasks", "data", "output", "seeds", *SIZES, "save_models", "compile")
# What a run file may change about a task.
SETTINGS = {field.name for field in dataclasses.fields(Task)} - {
    *("name", "head", "read", "splits", "copies", "source", "hub")
}
METRICS = {
    "classification": ("accuracy", "f1", "auc"),
    "tokens": ("f1", "macro_f1", "precision", "recall"),
    "answers": ("exact_match", "f1"),
    "choices": ("accuracy",),
}


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        models, tasks: each model is fine-tuned on each task.
        data: the folder of the tasks' files.
        output: the folder of the results.
        seeds: runs of each model on each task, besides the grid.
        save_models: whether fine-tuned models are kept beside the results and answer the hidden
            tests.
        compile: whether models are compiled.
    """

    models: list[Model]
    tasks: list[Task]
    data: Path
    output: Path
    seeds: int = 5
    save_models: bool = False
    compile: bool = False

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each model's files, by its name."""
        return {model.name: model.fingerprint() for model in self.models}


def read_plan(file: Path | None, options: dict) -> Plan:
    """The plan of a YAML file, changed by options that are not None.

    Tasks named in the options keep the settings that the file has for them.

    Raises:
        ValueError: on a key that is unknown or missing, an unknown task, or two models or tasks of
            one name.
    """
    content = read_yaml(file, "models: [MODEL]") if file else {}
    options = {key: value for key, value in options.items() if value is not None}
    if "tasks" in options:
        options["tasks"] = _as_written(options["tasks"], content.get("tasks"))
    content |= options
    where = str(file or "options")
    if unknown := sorted(map(str, content.keys() - set(KEYS))):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(KEYS)}.")
    for key in ("models", "tasks", "data", "output"):
        if not content.get(key):
            raise ValueError(f"{where}: {key!r} is missing; give it there or as an option.")
    for key in ("seeds", *SIZES):
        value = content.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{where}: {key!r} must be an integer of at least 1, got {value!r}.")
    for key in ("save_models", "compile"):
        if not isinstance(content.get(key, False), bool):
            raise ValueError(f"{where}: {key!r} must be true or false, got {content[key]!r}.")
    for key in ("models", "tasks"):
        if not isinstance(content[key], list):
            raise ValueError(f"{where}: {key!r} must be a list, got {content[key]!r}.")
    models = [_model(text, where) for text in content.pop("models")]
    names = [model.file_name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{where}: two models are called {twice!r}; name them, NAME=FOLDER.")
    sizes = {name: content.pop(name, None) for name in SIZES}
    tasks = [_task(entry, where, sizes) for entry in content.pop("tasks")]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{where}: the task {twice!r} is there twice; give it once.")
    data, output = Path(content.pop("data")), Path(content.pop("output"))
    return Plan(models, tasks, data, output, **content)


def _as_written(names: list[str], written) -> list:
    """Tasks with the settings that the run file, `written`, has for them, if it has any."""
    entries = written if isinstance(written, list) else []
    own = {name: entry for entry in entries if isinstance(entry, dict) for name in entry}
    return [own.get(name, name) for name in names]


def _model(text: str, where: str) -> Model:
    text = str(text)
    name, _, source = text.partition("=")
    if not source or Path(text.removeprefix(RANDOM)).is_dir():  # "=" may stand in a path
        name, source = "", text
    path = source.removeprefix(RANDOM)
    if is_path(path) and not Path(path).is_dir():
        raise ValueError(f"{where}: model {text!r}: there is no folder {path}.")
    if not name:
        name = source
        if source not in BASELINES:
            folder = Path(source.removeprefix(RANDOM))
            name = folder.resolve().name if folder.exists() else folder.name
            name += " (random weights)" if source.startswith(RANDOM) else ""
    model = Model(source, name)
    if not model.file_name.strip("."):
        raise ValueError(f"{where}: model {text!r}: a name with letters or digits expected.")
    return model


def _task(entry, where: str, sizes: dict) -> Task:
    """A task by its name, with settings of its own, or a new one with columns and files.

    `sizes` are the settings that all tasks have which do not set them.
    """
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{where}: a task is a name, or a name with its settings, got {entry!r}.")
    [(name, settings)] = entry.items()
    if not isinstance(settings or {}, dict):
        raise ValueError(f"{where}: the settings of task {name!r} are keys, got {settings!r}.")
    settings = sizes | (settings or {})
    columns, files, like = (settings.pop(key, None) for key in ("columns", "files", "like"))
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
        raise ValueError(
            f"{where}: the task {name!r}: a name of letters, digits, '_', '-' and '.' expected, "
            "which folders of results can have."
        )
    if unknown := sorted(settings.keys() - SETTINGS):
        raise ValueError(
            f"{where}: task {name!r} has an unknown setting {unknown[0]!r}; there are columns, "
            f"files, like, {', '.join(sorted(SETTINGS))}."
        )
    own = bool(columns) != bool(like) and files
    if own and name in TASKS:
        raise ValueError(f"{where}: {name!r} is a public task; give yours another name.")
    if not own and (name not in TASKS or columns or files or like):
        raise ValueError(
            f"{where}: unknown task {name!r}; there are {', '.join(TASKS)}. A task of your own "
            "needs 'files', and either 'columns' or 'like'."
        )
    try:
        for key, kind in (("learning_rates", float), ("labels", label_text)):
            if key in settings:
                if not isinstance(settings[key], list):
                    raise ValueError(f"{key}: a list expected, not {settings[key]!r}")
                settings[key] = tuple(map(kind, settings[key]))
        for key, value in (("columns", columns), ("files", files)):
            if value and not isinstance(value, dict):
                raise ValueError(f"{key}: keys with their names expected, not {value!r}")
        if columns:
            task = own_task(name, columns, files, **settings)
        elif like:
            task = task_like(name, like, files, **settings)
        else:
            task = dataclasses.replace(TASKS[name], **settings)
        _check(task)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: task {name!r}: {error}") from error
    return task


def _check(task: Task) -> None:
    """Refuses settings that no run can have.

    Raises:
        ValueError: on the first of them.
    """
    for key in ("max_length", "batch_size", "epochs", "patience", "longest_answer", *SIZES):
        value = getattr(task, key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{key}: a whole number above 0 expected, not {value!r}")
    if not task.learning_rates or min(task.learning_rates) <= 0:
        raise ValueError(f"learning_rates: numbers above 0 expected, not {task.learning_rates}")
    is_number = isinstance(task.held_out, int | float) and not isinstance(task.held_out, bool)
    if not is_number or not 0 <= task.held_out < 1:
        raise ValueError(f"held_out: a share from 0 to below 1 expected, not {task.held_out!r}")
    if not isinstance(task.blanks, bool):
        raise ValueError(f"blanks: true or false expected, not {task.blanks!r}")
    for key, known in (("metric", METRICS[task.head]), ("borders", BORDERS)):
        if getattr(task, key) not in known:
            raise ValueError(
                f"{key}: {getattr(task, key)!r} is unknown; there are {', '.join(known)}"
            )
