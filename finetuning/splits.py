"""The splits of a task: read, checked, and nothing in train that is scored later."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

from finetuning.choice_data import read_c3
from finetuning.tasks import HubReader, Task

ORDER = ("train", "dev", "test", "hidden")


@dataclass(frozen=True)
class Split:
    """The examples of a split, the files they come from, and how many labels or examples cannot be
    used, by reason."""

    examples: list[dict]
    files: tuple[str, ...]
    skipped: Counter

    @cached_property
    def digest(self) -> str:
        """Of the examples, which tells two states of a file or a data set apart."""
        content = json.dumps(self.examples, ensure_ascii=False, sort_keys=True, default=str)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load(task: Task, folder: Path) -> tuple[Task, dict[str, Split]]:
    """Reads and checks every split of a task.

    Examples of train whose text also stands in dev or test are left out of train and counted, so
    that nothing scored was seen in training.

    Returns:
        The task, its labels filled in, and the splits by name.

    Raises:
        FileNotFoundError: if files of "train" or "dev" or "test" are missing.
        ValueError: on an unknown label, a labeled split without labels, entities of dev or test
            that overlap, or train of one class only.
    """
    task, splits = _as_it_is_there(task, folder), {}
    for name, files in sorted(task.splits.items(), key=lambda item: ORDER.index(item[0])):
        paths = [folder / file for file in files]
        is_local = not isinstance(task.read, HubReader)
        missing = [str(path) for path in paths if is_local and not path.exists()]
        own = Path(files[0]).is_absolute()  # not below the folder of the public tasks
        if missing and name == "hidden" and not own:  # archives differ in having it
            continue
        if missing:
            remedy = "correct the task's files" if own else "name the right folder with --data"
            raise FileNotFoundError(
                f"{task.name}: {', '.join(missing)}, the {name} split, is missing; put it there, "
                f"or {remedy}."
            )
        examples, skipped = _read(task, paths)
        splits[name] = Split(examples, files, skipped)
    if "dev" not in splits:
        splits["train"], splits["dev"] = _hold_out(splits["train"], task)
        if not splits["dev"].examples:
            raise ValueError(
                f"{task.name}: holding out {task.held_out:.0%} of "
                f"{len(splits['train'].examples)} examples of train leaves none for dev; give the "
                "task a dev split."
            )
    splits["train"] = _without_scored_texts(splits)
    if not splits["train"].examples:
        raise ValueError(f"{task.name}: every text of train is also in dev or test.")
    _check_gold(task, splits)
    if task.head == "classification":
        task = _check_labels(task, splits)
    return task, splits


def _as_it_is_there(task: Task, folder: Path) -> Task:
    """The task with the files of a copy, if one is there and the published files are not."""
    for read, splits in ((task.read, task.splits), *task.copies):
        needed = [file for name in ("train", "dev") for file in splits.get(name, ())]
        if all((folder / file).exists() for file in needed):
            return replace(task, read=read, splits=splits)
    return task


def _read(task: Task, paths: list[Path]) -> tuple[list[dict], Counter]:
    """The examples of a split and what is left out, groups of different files kept apart."""
    if len(paths) == 1 or task.read is read_c3:  # whose passages have names across its files
        return task.read(*paths)
    examples, skipped, groups = [], Counter(), 0
    for path in paths:
        found, left_out = task.read(path)
        examples += [
            example | {"group": example["group"] + groups} if "group" in example else example
            for example in found
        ]
        groups = 1 + max((example.get("group", -1) for example in examples), default=-1)
        skipped += left_out
    return examples, skipped


def _text(example: dict) -> str:
    """What an example reads: two with the same are the same to a model."""
    parts = (example.get(key) for key in ("text", "text_pair", "context", "question"))
    return "\n".join(part for part in parts if part)


def _hold_out(train: Split, task: Task) -> tuple[Split, Split]:
    """Train without a share of its texts, and these; questions about a text stay together."""
    share = task.held_out
    keys = [_source(task, example) for example in train.examples]
    chosen = sorted(set(keys))
    random.Random(0).shuffle(chosen)
    chosen = set(chosen[: round(len(chosen) * share)])
    parts = {True: [], False: []}
    for key, example in zip(keys, train.examples, strict=True):
        parts[key in chosen].append(example)
    # A class that would only be held out could not be learned.
    names = {example.get("label") for example in parts[False]}
    held_out, parts[True] = parts[True], []
    for example in held_out:
        is_rare = isinstance(example.get("label"), str) and example["label"] not in names
        parts[not is_rare].append(example)
    files = tuple(f"{share:.0%} of {file}" for file in train.files)
    return replace(train, examples=parts[False]), Split(parts[True], files, Counter())


def _source(task: Task, example: dict) -> str:
    """What examples share that are about one text: its context, passage, or group of blanks."""
    if task.head == "choices":
        return str(example["group"]) if task.blanks else example["text"]
    return example.get("context") or _text(example)


def _without_scored_texts(splits: dict[str, Split]) -> Split:
    scored = {
        _text(example)
        for name in ("dev", "test")
        if name in splits
        for example in splits[name].examples
    }
    train = splits["train"]
    kept = [example for example in train.examples if _text(example) not in scored]
    skipped = Counter(train.skipped)
    if len(kept) < len(train.examples):
        skipped["left out: also in dev or test"] = len(train.examples) - len(kept)
    return replace(train, examples=kept, skipped=skipped)


# What an example of each head needs where it is trained on or scored.
_GOLD = {
    "classification": "label",
    "choices": "label",
    "tokens": "entities",
    "answers": "answers",
}


def _check_gold(task: Task, splits: dict[str, Split]) -> None:
    """Refuses splits to learn from or to score that cannot be."""
    key = _GOLD[task.head]
    for name, split in splits.items():
        for example in split.examples if name != "hidden" else ():
            where = f"{task.name}: {', '.join(split.files)}, example {example['id']!r}"
            if example[key] is None:
                raise ValueError(
                    f"{where}: there is no right answer, but {name} needs one; name the column of "
                    "labels, or put their file there."
                )
            if task.head == "tokens":
                _check_entities(task, example["entities"], name, where)
            elif task.head == "choices" and name == "train":
                _check_choices(task, example["choices"], where)


def _check_entities(task: Task, entities: list[list], name: str, where: str) -> None:
    for *_, label in entities:
        if task.labels and label not in task.labels:
            raise ValueError(
                f"{where}: unknown label {label!r}; the labels are {', '.join(task.labels)}. Give "
                "the task labels of its own."
            )
    if name == "train":
        return
    for (*_, end, label), (start, _, other) in pairwise(sorted(entities)):
        if start < end:
            raise ValueError(
                f"{where}: an entity of {label!r} and one of {other!r} overlap, which tags of "
                f"characters cannot show; keep one of them in {name}."
            )


def _check_choices(task: Task, choices: list[str], where: str) -> None:
    if len(choices) > task.choices:
        raise ValueError(
            f"{where}: has {len(choices)} choices, the task {task.choices}; raise choices."
        )


def check_metric(task: Task, splits: dict[str, Split]) -> None:
    """Refuses splits that the task's metric cannot score.

    Raises:
        ValueError: if it needs the classes 0 and 1 and the task has others, or a split one alone.
    """
    if task.head != "classification" or task.metric == "accuracy":
        return
    if sorted(task.labels) != ["0", "1"]:
        raise ValueError(
            f"{task.name}: {task.metric} needs the classes 0 and 1, but there are "
            f"{', '.join(task.labels[:5])}; choose metric: accuracy."
        )
    for name in splits.keys() & {"dev", "test"}:
        classes = sorted({example["label"] for example in splits[name].examples})
        if classes != ["0", "1"]:
            raise ValueError(
                f"{task.name}: {task.metric} needs examples of the classes 0 and 1, but {name} "
                f"has {', '.join(classes[:5])}; choose metric: accuracy, or other examples."
            )


def _check_labels(task: Task, splits: dict[str, Split]) -> Task:
    labels = task.labels or tuple(
        sorted({str(example["label"]) for example in splits["train"].examples})
    )
    for name, split in splits.items():
        for example in split.examples if name != "hidden" else ():
            if example["label"] not in labels:
                raise ValueError(
                    f"{task.name}: {', '.join(split.files)}, example {example['id']!r}: unknown "
                    f"label {example['label']!r}; the labels are {', '.join(labels)}."
                )
    if len({example["label"] for example in splits["train"].examples}) < 2:
        raise ValueError(
            f"{task.name}: all examples of train have the label "
            f"{splits['train'].examples[0]['label']!r}; there is nothing to learn."
        )
    return replace(task, labels=labels)


def subset(split: Split, count: int | None, together: bool = False) -> Split:
    """At most `count` examples of a split, the same ones each time, in the split's order.

    Args:
        together: whether those of a group are drawn together, as blanks of a passage are answered;
            of the last group only as many as fit.
    """
    if count is None or count >= len(split.examples):
        return split
    groups: dict = {}
    for index, example in enumerate(split.examples):
        groups.setdefault(example["group"] if together else index, []).append(index)
    drawn = random.Random(0).sample(list(groups.values()), min(count, len(groups)))
    chosen = sorted(list(chain.from_iterable(drawn))[:count])
    return replace(split, examples=[split.examples[index] for index in chosen])


def describe(task: Task, splits: dict[str, Split]) -> str:
    """One line: sizes, what cannot be used, classes, the share of the most frequent one in dev."""
    parts = []
    for name, split in splits.items():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in split.skipped.items())
        parts.append(f"{name} {len(split.examples):,}" + (f" ({counts})" if counts else ""))
    line = f"{task.name}: {'; '.join(parts)}"
    if task.head == "classification":
        counts = Counter(example["label"] for example in splits["dev"].examples)
        share = max(counts.values()) / sum(counts.values())
        line += f"; {len(task.labels)} classes, majority of dev {share:.1%}"
    return line
