"""The tasks: where their files are, how they are read, and how models are fine-tuned on them.

`TASKS` is the only place that knows a task. Files are named relative to one folder for all data.

Published scores of CLUE are those of `dev`, which also chose the epoch. Where another split is
labeled, that one is scored too, as `test`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from finetuning.choice_data import read_c3, read_chid
from finetuning.classification_data import (
    Columns,
    label_text,
    read_columns,
    read_csl,
    read_hub,
    read_wsc,
)
from finetuning.span_data import read_answers, read_entities

LIMITED = ("train", "dev", "test")  # splits that `PART_examples` cuts down to a fixed subset


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: its name in commands, tables and files.
        head: a key of `finetuning.heads.HEADS`.
        read: the reader of its files; called with a split's files, it returns the examples and a
            count of what is left out.
        splits: files of "train" and "dev", and of "test" (labeled) and "hidden" (without labels)
            where there are such.
        copies: readers and files of copies that differ from what was published; taken where train
            or dev as published is missing.
        source: where the protocol comes from, and what differs.
        labels: the classes, or kinds of entities, in order; None if those of train are taken.
        metric: the score that chooses epoch and rate, a key of the head's scores.
        max_length: tokens of an input, special tokens included.
        batch_size: examples in a step of training.
        epochs: at most so many; training ends earlier once dev has not improved for `patience`.
        patience: epochs.
        learning_rates: the grid. It spans what models of 10 M to 110 M parameters want.
        choices: for choices, how many there are.
        blanks: for choices, whether they fill a blank of the text.
        borders: for spans, where tokens have to end, see `finetuning.spans.encode`.
        longest_answer: for answers, the characters of the longest one that is predicted.
        held_out: the share of train that becomes dev, if the task has no dev of its own.
        hub: the Hub data set that holds the task.
        train_examples, dev_examples, test_examples: of these splits at most so many are used,
            always the same ones; None for all.
    """

    name: str
    head: str
    read: Callable[..., tuple[list[dict], Counter]]
    splits: dict[str, tuple[str, ...]]
    source: str
    labels: tuple[str, ...] | None = None
    metric: str = "accuracy"
    max_length: int = 128
    batch_size: int = 32
    epochs: int = 5
    patience: int = 2
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    choices: int = 0
    blanks: bool = False
    borders: str = "words"
    longest_answer: int = 64
    held_out: float = 0.0
    hub: str = ""
    train_examples: int | None = None
    dev_examples: int | None = None
    test_examples: int | None = None
    copies: tuple[tuple[Callable, dict[str, tuple[str, ...]]], ...] = ()


_CLUE = "CLUE (arXiv:2004.05986) and its baselines"
_FEWCLUE = "FewCLUE (arXiv:2107.07498), all few-shot examples at once"
_NEWS = tuple(str(number) for number in range(100, 117) if number not in (105, 111))
_NLI = ("entailment", "neutral", "contradiction")
_ENTITIES = (
    *("address", "book", "company", "game", "government"),
    *("movie", "name", "organization", "position", "scene"),
)


def _files(folder: str, **names: str) -> dict[str, tuple[str, ...]]:
    return {split: (f"{folder}/{name}",) for split, name in names.items()}


def _clue(folder: str) -> dict[str, tuple[str, ...]]:
    return _files(folder, train="train.json", dev="dev.json", hidden="test.json")


def _few(folder: str) -> dict[str, tuple[str, ...]]:
    return _files(
        f"fewclue/{folder}",
        train="train_few_all.json",
        dev="dev_few_all.json",
        test="test_public.json",
        hidden="test.json",
    )


def _columns(*names, **others) -> partial:
    return partial(read_columns, columns=Columns(*names, **others))


def _few_task(folder: str, read, labels=None, **others) -> Task:
    # A hundred examples need small batches and more passes.
    few = {"batch_size": 16, "epochs": 20, "patience": 5} | others
    return Task(
        f"fewclue_{folder}", "classification", read, _few(folder), _FEWCLUE, labels=labels, **few
    )


_PAIR = _columns("sentence1", "label", "sentence2")
_OCNLI = _columns("sentence1", "label", "sentence2", ignored=("-",))
_SENTENCE = _columns("sentence")
_CHINESE_BERT_WWM = "ymcui/Chinese-BERT-wwm (arXiv:1906.08101)"
_LONG = {"max_length": 512, "batch_size": 16}

_ALL = (
    Task(
        *("afqmc", "classification", _PAIR, _clue("afqmc"), _CLUE),
        labels=("0", "1"),
        copies=(
            (
                _columns(0, 2, 1),
                _files("afqmc", train="train.txt", dev="dev.txt", hidden="test.txt"),
            ),
        ),
    ),
    Task(
        *("tnews", "classification", _SENTENCE, _clue("tnews")),
        f"{_CLUE}; titles without keywords",
        labels=_NEWS,
        # Some copies have CLUE's dev under the name of the hidden test.
        copies=((_SENTENCE, _files("tnews", train="train.json", dev="test.json")),),
    ),
    Task(
        *("iflytek", "classification", _SENTENCE, _clue("iflytek"), _CLUE),
        labels=tuple(map(str, range(119))),
        max_length=256,
    ),
    Task(*("cmnli", "classification", _OCNLI, _clue("cmnli"), _CLUE), labels=_NLI),
    Task(
        *("ocnli", "classification", _OCNLI),
        _files("ocnli", train="train.10k.json", dev="dev.json", hidden="test.json"),
        f"{_CLUE}; train is the 10k of 50k",
        labels=_NLI,
        epochs=8,
    ),
    Task(
        *("cluewsc2020", "classification", read_wsc, _clue("cluewsc2020")),
        f"{_CLUE}; spans marked in the text",
        labels=("false", "true"),
        batch_size=16,
        epochs=30,
        patience=8,
    ),
    Task(
        *("csl", "classification", read_csl, _clue("csl"), _CLUE),
        labels=("0", "1"),
        max_length=256,
        batch_size=16,
    ),
    Task(
        *("csl_category", "classification", _columns(1, 2)),
        _files(
            "csl_benchmark/cls_ctg",
            **{split: f"{split}.tsv" for split in ("train", "dev", "test")},
        ),
        "CSL (arXiv:2209.05034), title to category",
        epochs=8,
    ),
    Task(
        *("chnsenticorp", "classification", _columns("text_a")),
        _files(
            "sentiment/chnsenticorp",
            **{split: f"{split}.tsv" for split in ("train", "dev", "test")},
        ),
        _CHINESE_BERT_WWM,
        labels=("0", "1"),
        max_length=256,
    ),
    Task(
        *("cluener", "tokens", read_entities, _clue("cluener"), "CLUENER2020 (arXiv:2001.04351)"),
        labels=_ENTITIES,
        metric="f1",
        epochs=10,
        patience=3,
    ),
    Task(
        *("cmrc2018", "answers", read_answers),
        _files(
            "cmrc2018",
            train="cmrc2018_train.json",
            dev="cmrc2018_dev.json",
            hidden="cmrc2018_test_2k.json",  # CLUE's, with answers that are none
        ),
        f"{_CLUE}; official scores of CMRC2018",
        metric="exact_match",
        **_LONG,
    ),
    Task(
        *("drcd", "answers", read_answers),
        _files("drcd", train="DRCD_training.json", dev="DRCD_dev.json", test="DRCD_test.json"),
        f"DRCD (arXiv:1806.00920), {_CHINESE_BERT_WWM}",
        metric="exact_match",
        **_LONG,
    ),
    Task(
        *("drcd_dev", "answers", read_answers),
        _files("drcd", train="DRCD_dev.json", test="DRCD_test.json"),
        "DRCD's dev as train, where its training file is missing: no published row compares",
        metric="exact_match",
        held_out=0.1,
        epochs=10,
        **_LONG,
    ),
    Task(
        *("c3", "choices", read_c3),
        {
            split: (f"c3/c3-d-{split}.json", f"c3/c3-m-{split}.json")
            for split in ("train", "dev", "test")
        },
        f"{_CLUE}; dialogues and other texts together",
        choices=4,
        epochs=8,
        copies=(  # CLUE's archive
            (
                read_c3,
                {split: (f"c3/d-{split}.json", f"c3/m-{split}.json") for split in ("train", "dev")}
                | {"hidden": ("c3/test1.1.json",)},
            ),
        ),
        **_LONG,
    ),
    Task(
        *("chid", "choices", read_chid),
        _files("chid", train="train.json", dev="dev.json", hidden="test1.1.json"),
        f"{_CLUE}; 64 tokens around a blank",
        choices=10,
        blanks=True,
        max_length=64,
        batch_size=16,
    ),
    Task(
        *("fewclue_chid", "choices", read_chid, _few("chid"), _FEWCLUE),
        choices=7,
        blanks=True,
        max_length=64,
        batch_size=16,
        epochs=20,
        patience=5,
    ),
    _few_task("bustm", _PAIR, ("0", "1")),
    _few_task("cluewsc", read_wsc, ("false", "true")),
    _few_task("csl", read_csl, ("0", "1"), max_length=256),
    _few_task("csldcp", _columns("content"), max_length=256),
    _few_task("eprstmt", _SENTENCE, ("Negative", "Positive")),
    _few_task("iflytek", _SENTENCE, tuple(map(str, range(119))), max_length=256),
    _few_task("ocnli", _OCNLI, _NLI),
    _few_task("tnews", _SENTENCE, _NEWS),
)
_ON_HUB = (
    *("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl", "cmrc2018", "drcd"),
    *("chid", "c3"),
)
TASKS = {task.name: replace(task, hub="clue/clue" if task.name in _ON_HUB else "") for task in _ALL}


@dataclass(frozen=True)
class HubReader:
    """Reads the splits of a Hub data set, each named as a file would be."""

    name: str
    columns: Columns

    def __call__(self, split: Path) -> tuple[list[dict], Counter]:
        return read_hub(self.name, split.name, self.columns)


def own_task(name: str, columns: dict, files: dict[str, str], **settings) -> Task:
    """A classification task of your own.

    Args:
        columns: keys `text`, `label` and, for pairs, `text_pair`: the names of the columns.
        files: a file for each of "train", "dev", "test" and "hidden" that there is; or, with the
            key "hub", the name of a Hub data set, and for each of these its split.
        settings: other attributes of `Task`.
    """
    known = [field.name for field in fields(Columns)]
    if unknown := sorted(columns.keys() - set(known)):
        raise ValueError(f"columns: {unknown[0]!r} is unknown; there are {', '.join(known)}")
    ignored = columns.get("ignored", [])
    if not isinstance(ignored, list | tuple):
        raise ValueError(f"columns: ignored: a list of labels expected, not {ignored!r}")
    names = Columns(**columns | {"ignored": tuple(map(label_text, ignored))})
    files = dict(files)
    hub = files.pop("hub", None)
    _check_parts(files)
    if hub:
        read = HubReader(hub, names)
        splits = {split: (name,) for split, name in files.items()}
    else:
        read = partial(read_columns, columns=names)
        splits = {split: (str(Path(name).absolute()),) for split, name in files.items()}
    if "dev" not in splits:
        settings = {"held_out": 0.1} | settings
    return Task(name, "classification", read, splits, "your own data", **settings)


def task_like(name: str, like: str, files: dict[str, str | list[str]], **settings) -> Task:
    """A task of your own whose files are written as those of a public one.

    Args:
        like: the public task.
        files: for "train" and each other split that there is, a file, or the files.
        settings: other attributes of `Task`.
    """
    if like not in TASKS:
        raise ValueError(f"like: {like!r} is unknown; there are {', '.join(TASKS)}")
    _check_parts(files)
    splits = {
        split: tuple(str(Path(file).absolute()) for file in _as_list(given))
        for split, given in files.items()
    }
    known = TASKS[like]
    if known.head == "classification":  # its classes are those of the files
        settings = {"labels": None} | settings
    if "dev" not in splits:
        settings = {"held_out": 0.1} | settings
    source = f"your own data, in the format of {like}"
    own = {"name": name, "splits": splits, "copies": (), "source": source, "hub": ""}
    return replace(known, **own, **settings)


def _as_list(given: str | list[str]) -> list[str]:
    return given if isinstance(given, list) else [given]


def _check_parts(files: dict) -> None:
    """Refuses files of a split that is unknown, or files without a train split."""
    parts = ("train", "dev", "test", "hidden")
    if "train" not in files or (unknown := sorted(files.keys() - set(parts))):
        named = f"{unknown[0]!r} is unknown" if "train" in files else "train is missing"
        raise ValueError(f"files: {named}; there are {', '.join(parts)}")
