"""The file that describes a training run: model, tasks in turn, and what the trainer is told.

    model: .                            any model of sentence-transformers, or an encoder
    architecture: bi_encoder            or cross_encoder or late_interaction
    layers: 6                           optional: only the first layers are kept
    vector_size: 768                    optional: values of a vector, where not the encoder's
    start: words                        optional: codes of words stand beside the layers' states
    word_vectors: FOLDER                with start: a teacher's of each token, by embedding.distill
    word_size: 288                      with start: values of a word's vector
    train_layers: false                 optional, with start: the layers are left out meanwhile
    train_embeddings: false             optional: the tokens' embeddings stay as they are
    whiten: true                        optional: a layer that makes the vectors white to begin with
    compile: true                       optional: model.compile(); needs a C++ compiler on a CPU
    output: runs/embedding/simclue      folder to make
    dtype: fp32                         or bf16: how the weights are stored there
    exclude: TASKS                      optional: rows with a text of its test sets are dropped
    dimensions: [256, 128]              optional: Matryoshka sizes below the full one
    prompts: {query: "查询：", document: ""}   optional: saved with the model
    turns: proportional                 or round_robin: how tasks take turns, batch by batch
    training: {num_train_epochs: 3, …}  keys of SentenceTransformerTrainingArguments
    tasks:
      pairs:                            a name of your own
        kind: pairs                     pairs, triplets, ranked, nli, scored, questions, teacher
                                        or neighbors
        files: [train_pair_postive_1w.json]
        columns: [query, title]

All paths are relative to the working directory, as on the command line, where keys can be set, too:
`seed=1 output=runs/other tasks.pairs.limit=1000`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainingArguments

from embedding.architectures import ARCHITECTURES
from embedding.encoder import DTYPES
from pretraining.plain_yaml import read_yaml, set_key

TURNS = ("proportional", "round_robin")
# What the run file says elsewhere, or the command decides.
RESERVED = frozenset(
    ("output_dir", "prompts", "seed", "multi_dataset_batch_sampler", "batch_sampler")
)


@dataclass(frozen=True)
class TaskSpec:
    """One task of a run.

    Args:
        kind: what a row is, see `embedding.architectures`.
        files: JSONL, or TSV whose columns are named by numbers from 0; for `questions` JSON in
            SQuAD's format.
        hub: a data set of the Hub, instead of files.
        config, split: of the data set of the Hub.
        columns: which fields of a row are read, in the order of the kind.
        loss: one of the kind's losses in this architecture; None takes the first.
        score_range: lowest and highest score of `scored` rows.
        labels: score of each label of `scored` rows, or null for labels to leave out.
        prompts: names of the run's prompts, one a column of text; None uses none.
        limit: how many rows are used, drawn by the seed; None uses all.
        length: characters of the paragraph around the answer, for `questions`.
        traditional: whether all texts are turned into traditional characters.
        mini_batch: texts at a time in `ranking` (gradient caching), which takes less memory and a
            third more time, with the same result; None takes the whole batch at once (rerankers:
            32 texts).
        scale: inverse temperature of `ranking` and `cosent`; None takes the loss's own, 20 for
            vectors.
        margin: by which the better candidate must lead in `triplet`.
        similarity_weight: of the similarities within a batch, for kind `teacher`.
        teacher: folder that `embedding.distill` wrote, for kinds `teacher` and `neighbors`.
    """

    name: str
    kind: str
    files: tuple[Path, ...] = ()
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    columns: tuple[str | int, ...] = ()
    loss: str | None = None
    score_range: tuple[float, float] = (0.0, 1.0)
    labels: dict[str, float | None] | None = None
    prompts: tuple[str, ...] | None = None
    limit: int | None = None
    length: int = 256
    traditional: bool = False
    mini_batch: int | None = None
    scale: float | None = None
    margin: float = 0.2
    similarity_weight: float = 0.1
    teacher: Path | None = None


@dataclass(frozen=True)
class RunFile:
    """A training run, checked; the fields are the keys at the top of this file."""

    model: str
    output: Path
    tasks: tuple[TaskSpec, ...]
    architecture: str = "bi_encoder"
    layers: int | None = None
    vector_size: int | None = None
    start: str | None = None
    word_vectors: Path | None = None
    word_size: int | None = None
    train_layers: bool = True
    train_embeddings: bool = True
    whiten: bool = False
    compile: bool = False
    dtype: str = "fp32"
    training: dict = field(default_factory=dict)
    seed: int = 0
    exclude: Path | None = None
    dimensions: tuple[int, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    turns: str = "proportional"


def load_run_file(file: Path, overrides: Sequence[str] = ()) -> RunFile:
    """Reads and checks a run file; the data is not read.

    Args:
        overrides: `key=value`, dots between nested keys; values are YAML.

    Raises:
        OSError, ValueError: if it cannot be used; the message names file, key and remedy.
    """
    values = read_yaml(file, "model: .")
    for override in overrides:
        set_key(values, override)
    _check_keys(values, RunFile, str(file))
    tasks = values.pop("tasks")
    if not tasks:
        raise ValueError(f"{file}: tasks: at least one named task expected.")
    architecture = values.get("architecture", RunFile.architecture)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file}: architecture: {architecture!r}; one of {', '.join(ARCHITECTURES)} expected."
        )
    losses = ARCHITECTURES[architecture].losses
    specs = tuple(
        _task(name, task, losses, f"{file}: tasks.{name}") for name, task in tasks.items()
    )
    for key in ("output", "exclude", "word_vectors"):
        if values.get(key) is not None:
            values[key] = Path(values[key])
    values["dimensions"] = tuple(values.get("dimensions") or ())
    run = RunFile(tasks=specs, **values)
    _check_run(run, str(file))
    return run


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _all(check: Callable, kind: type = list) -> Callable:
    """A check of a list, or of the values of a dictionary."""

    def every(value) -> bool:
        return isinstance(value, kind) and all(
            map(check, value.values() if kind is dict else value)
        )

    return every


def _is_text(value) -> bool:
    return isinstance(value, str)


# What a value has to be, in words, and its check. Null stands for a key that is left out.
_TEXT = ("a text", _is_text)
_TEXTS = ("a list of texts", _all(_is_text))
_COUNT = ("a whole number above 0", lambda value: _is_whole(value) and value > 0)
_NUMBER = ("a number", _is_number)
_KEYS = ("keys and values", lambda value: isinstance(value, dict))
_VALUES = {
    **dict.fromkeys(("model", "start", "output", "architecture", "dtype"), _TEXT),
    **dict.fromkeys(("exclude", "turns", "word_vectors"), _TEXT),
    **dict.fromkeys(("kind", "hub", "config", "split", "loss", "teacher"), _TEXT),
    **dict.fromkeys(
        ("layers", "vector_size", "word_size", "limit", "length", "mini_batch"), _COUNT
    ),
    **dict.fromkeys(("scale", "margin", "similarity_weight"), _NUMBER),
    **dict.fromkeys(("training", "tasks"), _KEYS),
    "labels": (
        "labels and their scores, numbers or null",
        _all(lambda value: value is None or _is_number(value), dict),
    ),
    **dict.fromkeys(
        ("compile", "traditional", "train_embeddings", "train_layers", "whiten"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
    "seed": ("a whole number", _is_whole),
    "dimensions": ("a list of whole numbers", _all(_is_whole)),
    "files": _TEXTS,
    "columns": (
        "a list of names, or of numbers from 0",
        lambda value: (
            _all(_is_text)(value) or _all(lambda number: _is_whole(number) and number >= 0)(value)
        ),
    ),
    "score_range": (
        "[lowest, highest]",
        lambda value: _all(_is_number)(value) and len(value) == 2 and value[0] < value[1],
    ),
}
_PROMPTS = {
    RunFile: ("names and texts", _all(_is_text, dict)),
    TaskSpec: ("a list of names", _all(_is_text)),
}


def _check_keys(values: dict, kind: type, where: str, given: tuple[str, ...] = ()) -> None:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    if unknown := [key for key in values if key not in fields or key in given]:
        known = ", ".join(name for name in fields if name not in given)
        raise ValueError(f"{where}: unknown key {unknown[0]!r}. Known: {known}.")
    for name, entry in fields.items():
        optional = (
            entry.default is not dataclasses.MISSING
            or entry.default_factory is not dataclasses.MISSING
        )
        if not optional and name not in values and name not in given:
            raise ValueError(f"{where}: key {name!r} is missing.")
    for name, value in values.items():
        wanted, fits = _PROMPTS[kind] if name == "prompts" else _VALUES[name]
        if not fits(value) and not (value is None and fields[name].default is None):
            raise ValueError(f"{where}: {name}: {wanted} expected, not {value!r}.")


def _task(name: str, values, losses: dict[str, tuple[str, ...]], where: str) -> TaskSpec:
    if not isinstance(name, str) or "." in name:
        raise ValueError(f"{where}: a task's name is a text without dots; in quotes if a number.")
    if not isinstance(values, dict):
        raise ValueError(f"{where}: keys and values expected, such as `kind: pairs`.")
    _check_keys(values, TaskSpec, where, given=("name",))
    values = dict(values)
    if values["kind"] not in losses:
        raise ValueError(
            f"{where}.kind: {values['kind']!r}; one of {', '.join(losses)} expected with this "
            "architecture."
        )
    of_kind = losses[values["kind"]]
    values["loss"] = values.get("loss") or of_kind[0]
    if values["loss"] not in of_kind:
        raise ValueError(
            f"{where}.loss: {values['loss']!r}; kind {values['kind']} has {', '.join(of_kind)}."
        )
    values["files"] = tuple(Path(path) for path in values.get("files") or ())
    for key in ("columns", "score_range", "prompts"):
        if values.get(key) is not None:
            values[key] = tuple(values[key])
    if values.get("labels"):
        values["labels"] = {str(label): score for label, score in values["labels"].items()}
    if values.get("teacher"):
        values["teacher"] = Path(values["teacher"])
    spec = TaskSpec(name=name, **values)
    _check_task(spec, where)
    return spec


def _check_task(spec: TaskSpec, where: str) -> None:
    if spec.kind in ("teacher", "neighbors"):
        if spec.teacher is None:
            raise ValueError(f"{where}.teacher: name a folder that embedding.distill wrote.")
        if spec.traditional:
            raise ValueError(f"{where}.traditional: a teacher's vectors belong to its texts.")
        return
    if spec.teacher is not None:
        raise ValueError(f"{where}.teacher: only the kinds teacher and neighbors have one.")
    if spec.kind == "questions" and not spec.files:
        raise ValueError(f"{where}.files: name files in SQuAD's format.")
    if bool(spec.files) == bool(spec.hub):
        raise ValueError(f"{where}: give either files or hub.")
    exactly = {"pairs": 2, "nli": 3, "scored": 3, "questions": 0}.get(spec.kind)
    if len(spec.columns) < 2 if exactly is None else len(spec.columns) != exactly:
        wanted = "at least 2" if exactly is None else exactly
        raise ValueError(
            f"{where}.columns: {len(spec.columns)} given, {wanted} needed for kind {spec.kind}."
        )


def _check_run(run: RunFile, where: str) -> None:
    if run.turns not in TURNS:
        raise ValueError(f"{where}: turns: {run.turns!r}; one of {', '.join(TURNS)} expected.")
    if run.dtype not in DTYPES:
        raise ValueError(f"{where}: dtype: {run.dtype!r}; one of {', '.join(DTYPES)} expected.")
    known = {entry.name for entry in dataclasses.fields(SentenceTransformerTrainingArguments)}
    for key in run.training:
        if key in RESERVED:
            raise ValueError(f"{where}: training.{key} is not set here; see docs/embedding.md.")
        if key not in known:
            raise ValueError(
                f"{where}: training.{key} is not a key of SentenceTransformerTrainingArguments."
            )
    if run.dimensions and run.architecture != "bi_encoder":
        raise ValueError(f"{where}: dimensions: only a bi_encoder has one vector a text.")
    if run.vector_size is not None and run.architecture != "bi_encoder":
        raise ValueError(f"{where}: vector_size: only a bi_encoder has one vector a text.")
    of_words = (run.vector_size, run.word_vectors, run.word_size)
    if run.start is not None and (run.start != "words" or None in of_words):
        raise ValueError(
            f"{where}: start: {run.start!r}, but `words` together with vector_size, word_vectors "
            "and word_size expected."
        )
    if not run.train_layers and run.start is None:
        raise ValueError(f"{where}: train_layers: false needs `start: words`.")
    for key in ("word_vectors", "word_size"):
        if getattr(run, key) is not None and run.start is None:
            raise ValueError(f"{where}: {key} needs `start: words`.")
    if run.whiten and run.architecture != "bi_encoder":
        raise ValueError(f"{where}: whiten: only a bi_encoder has one vector a text.")
    for task in run.tasks:
        if task.prompts and run.architecture == "cross_encoder":
            raise ValueError(
                f"{where}: tasks.{task.name}.prompts: a cross_encoder reads both texts as one "
                "input, without prompts of their own."
            )
        for prompt in task.prompts or ():
            if prompt not in run.prompts:
                raise ValueError(
                    f"{where}: tasks.{task.name}.prompts: {prompt!r} is not among the run's "
                    f"prompts ({', '.join(run.prompts) or 'none'})."
                )
