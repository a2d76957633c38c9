"""Filters of documents: those that look at one alone, and those that take out duplicates."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from pretraining.data.executors import Stage
from pretraining.data.words import HAN, Segmenter
from pretraining.plain_yaml import read_yaml


class LengthFilter(BaseFilter):
    """Keeps documents of `minimum` to `maximum` characters; None: no bound."""

    name = "length"

    def __init__(self, minimum: int | None = None, maximum: int | None = None):
        super().__init__()
        self.minimum = minimum
        self.maximum = maximum

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if self.minimum is not None and len(document.text) < self.minimum:
            return False, "short"
        if self.maximum is not None and len(document.text) > self.maximum:
            return False, "long"
        return True


class HanFilter(BaseFilter):
    """Keeps documents in which at least `minimum` of the characters but white space are Han."""

    name = "share of Chinese"

    def __init__(self, minimum: float):
        super().__init__()
        self.minimum = minimum

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        characters = sum(map(len, document.text.split()))
        han = len(HAN.findall(document.text))
        return (True, "") if han >= self.minimum * characters else (False, "not_chinese")


class ChineseWords(WordTokenizer):
    """Gives datatrove's filters, which count words, the words of Chinese text."""

    def __init__(self):
        super().__init__("zh")
        self._segmenter = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_segmenter": None}

    def word_tokenize(self, text: str) -> list[str]:
        self._segmenter = self._segmenter or Segmenter()
        return [word for word in self._segmenter.segment(text) if not word.isspace()]

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no filter in use counts sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no filter in use counts sentences")


# What takes each filter's thresholds; None where there are none.
_FILTERS = {
    "length": LengthFilter,
    "chinese": HanFilter,
    "repetition": GopherRepetitionFilter,
    "exact_deduplication": None,
    "minhash": minhash.MinhashConfig,
}
# Parameters that are no thresholds: objects, which YAML cannot hold.
_OBJECTS = ("exclusion_writer", "language", "hash_config", "norm_config")


def read_filters(file: Path | None) -> dict[str, dict]:
    """Filters and their thresholds, from a YAML file such as configs/filters.yaml.

    Raises:
        OSError, ValueError: if the file cannot be read, or names a filter or threshold that does
            not exist.
    """
    if file is None:
        return {}
    filters = read_yaml(file, "length: {minimum: 100}")
    filters = {name: thresholds or {} for name, thresholds in filters.items()}
    try:
        check_filters(filters)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return filters


def check_filters(filters: Mapping[str, dict]) -> None:
    """Checks the names of filters and of their thresholds.

    Raises:
        ValueError: if there is no such filter or threshold, or one is missing or no number.
    """
    for name, thresholds in filters.items():
        if name not in _FILTERS:
            raise ValueError(f"no filter {name!r}; there are {', '.join(_FILTERS)}.")
        if not isinstance(thresholds, dict):
            raise ValueError(f"{name}: must hold thresholds, like configs/filters.yaml.")
        made = _FILTERS[name]
        parameters = inspect.signature(made).parameters if made else ()
        known = [each for each in parameters if each not in _OBJECTS]
        if unknown := [each for each in thresholds if each not in known]:
            there = ", ".join(known) or "none"
            raise ValueError(f"{name}: no threshold {unknown[0]!r}; there are {there}.")
        for each in known:
            required = parameters[each].default is inspect.Parameter.empty
            if required and thresholds.get(each) is None:
                raise ValueError(f"{name}: give a threshold {each!r}, like configs/filters.yaml.")
        for each, value in thresholds.items():
            if value is None and type(None) in get_args(parameters[each].annotation):
                continue  # this one is not applied
            if isinstance(parameters[each].default, tuple):
                if not _are_pairs(value):
                    raise ValueError(f"{name}.{each}: pairs of numbers expected, not {value!r}.")
            elif not isinstance(value, int | float):
                raise ValueError(f"{name}.{each}: a number expected, not {value!r}.")
            elif made is HanFilter and not 0 <= value <= 1:
                raise ValueError(f"{name}.{each}: a share from 0 to 1 expected, not {value!r}.")


def _are_pairs(value: object) -> bool:
    """Whether YAML gave pairs of numbers, as repetition takes them for its n-grams."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int | float) for n in pair)
        for pair in value
    )


def document_filters(filters: Mapping[str, dict]) -> list[PipelineStep]:
    """The filters that look at one document at a time, in their fixed order."""
    steps = []
    if "length" in filters:
        steps.append(LengthFilter(**filters["length"]))
    if "chinese" in filters:
        steps.append(HanFilter(**filters["chinese"]))
    if "repetition" in filters:
        steps.append(GopherRepetitionFilter(**filters["repetition"], language=ChineseWords()))
    return steps


def finds_duplicates(filters: Mapping[str, dict]) -> bool:
    """Whether any filter compares documents with each other."""
    return "exact_deduplication" in filters or "minhash" in filters


def allow_open_files(tasks: int) -> None:
    """Lets this process open a file of each task at once.

    Raises:
        OSError: if the system does not.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = tasks + 256  # libraries and data sets keep some open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(
            f"duplicates are found by opening a file of each of the {tasks} tasks at once, and the "
            f"system allows {hard} files; raise that limit (ulimit -Hn), or give fewer --tasks."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class _OpensAFileATask:
    """A step that opens a file of each task at once, wherever it runs."""

    tasks: int

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1):
        allow_open_files(self.tasks)
        return super().run(data, rank, world_size)


class _ExactFind(_OpensAFileATask, ExactFindDedups):
    pass


class _MinhashFind(_OpensAFileATask, minhash.MinhashDedupBuckets):
    pass


def text_of(document: Document) -> str:
    """What makes two documents the same, for exact deduplication."""
    return document.text


def exact_deduplication(
    documents: list[PipelineStep], folder: Path, tasks: int
) -> tuple[list[Stage], PipelineStep]:
    """The stages that find documents of the same text, and the filter that keeps one of each.

    Args:
        documents: the steps that read the documents.
        folder: for what the stages find.
        tasks: parts of the work.
    """
    found = f"{folder}-found"
    config = ExactDedupConfig(content_getter=text_of)
    find = _ExactFind(str(folder), found, config)
    find.tasks = tasks
    stages = [
        Stage("exact-hashes", [*documents, ExactDedupSignature(str(folder), config)], tasks),
        Stage("exact-find", [find], 1),
    ]
    return stages, ExactDedupFilter(found, config)


def minhash_deduplication(
    documents: list[PipelineStep], folder: Path, tasks: int, thresholds: dict
) -> tuple[list[Stage], PipelineStep]:
    """The stages that find documents that are nearly the same, and the filter that keeps one.

    Args:
        documents, folder, tasks: as in `exact_deduplication`.
        thresholds: of datatrove's `MinhashConfig`.
    """
    config = minhash.MinhashConfig(**thresholds)
    signatures, buckets, removed = (
        f"{folder}-{name}" for name in ("signatures", "buckets", "removed")
    )
    sign = minhash.MinhashDedupSignature(signatures, config, language=ChineseWords())
    find = _MinhashFind(signatures, buckets, config=config)
    find.tasks = tasks
    stages = [
        Stage("minhash-signatures", [*documents, sign], tasks),
        Stage("minhash-buckets", [find], config.num_buckets),
        Stage("minhash-cluster", [minhash.MinhashDedupCluster(buckets, removed, config)], 1),
    ]
    return stages, minhash.MinhashDedupFilter(removed)
