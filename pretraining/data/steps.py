"""The steps of preparing a corpus, as datatrove's executors run them.

A step is handed to worker processes, nodes or a Ray cluster as it is, so it holds paths and plain
values only and opens what it needs where it runs. Each task works on its own share of the corpus
and writes its own files; the last step, which has one task, puts them together.
"""

import collections
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.stats import PipelineStats
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger
from tqdm import tqdm

from pretraining.data.corpus import CorpusError, read_file
from pretraining.data.encoding import Encoder
from pretraining.data.packing import pack
from pretraining.data.rows import write_manifest, write_shards
from pretraining.data.words import Segmenter
from pretraining.files import replacing, write_json

# Documents that are encoded at a time, and characters after which no further one joins them.
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 20

_HAN = regex.compile(r"\p{Han}")


def text_of(document: Document) -> str:
    """What makes two documents the same, for datatrove's exact deduplication."""
    return document.text


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's executor for one machine, which here leaves the terminal to our messages."""

    def run(self) -> PipelineStats | None:
        logger.disable("datatrove")
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")  # perhaps in another process
        return super()._run_for_rank(rank, local_rank, node_rank)


class ReadCorpus(PipelineStep):
    """Reads a task's share of the corpus: whole files, or lines where files are fewer than tasks.

    Args:
        files: of the whole corpus, from `find_files`.
        text_field: the field that holds the text.
        refuse: whether bad input stops the work; else it is skipped and reported.
        report: folder for a JSON-lines file of each task with what was skipped.
    """

    type = "READER"
    name = "corpus"

    def __init__(self, files: list[str], text_field: str, refuse: bool, report: Path):
        super().__init__()
        self.files = files
        self.text_field = text_field
        self.refuse = refuse
        self.report = report

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        report = self.report / f"{rank:05}.jsonl"
        with replacing(report) as temporary, open(temporary, "w", encoding="utf-8") as problems:

            def on_error(error: CorpusError) -> None:
                if self.refuse:
                    raise error
                record = {"kind": error.kind, "message": str(error)}
                problems.write(json.dumps(record, ensure_ascii=False) + "\n")

            for index, file in enumerate(self.files):
                wanted = self._share(index, rank, world_size)
                if wanted is None:
                    continue
                for document in read_file(file, self.text_field, on_error, wanted):
                    yield Document(
                        text=document.text,
                        id=f"{file}:{document.line}",
                        metadata={"domain": document.domain, "script": document.script},
                    )

    def _share(self, index: int, rank: int, world_size: int):
        if len(self.files) >= world_size:
            return (lambda number: True) if index % world_size == rank else None
        return lambda number: (index + number) % world_size == rank


class ReadCleaned(JsonlReader):
    """Reads what the filters left, which may be no document and so no file."""

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        if self.data_folder.list_files():
            yield from super().run(data, rank, world_size)


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
    """Keeps documents of whose characters, white space aside, at least `minimum` are Han."""

    name = "share of Chinese"

    def __init__(self, minimum: float):
        super().__init__()
        self.minimum = minimum

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        characters = sum(map(len, document.text.split()))
        han = len(_HAN.findall(document.text))
        return (True, "") if han >= self.minimum * characters else (False, "not_chinese")


class ChineseWords(WordTokenizer):
    """Gives datatrove's filters, which count in words, the words of Chinese text."""

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


class WriteRows(PipelineStep):
    """Segments, encodes and packs a task's documents; writes its shards and, last, its counts.

    Args:
        tokenizer_file: the tokenizer.json.
        dictionary: words for the segmenter beside its own, or None.
        seq_len: tokens of a row.
        output: folder for the shards.
        counts: folder for a JSON file of each task.
        special: the ids of [CLS], [SEP] and [PAD].
        separate_domains: no row holds documents of two domains or scripts, and each shard says
            whose it holds. A task then keeps all of its tokens in memory: for held-out text.
    """

    type = "WRITER"
    name = "rows"

    def __init__(
        self,
        tokenizer_file: Path,
        dictionary: Path | None,
        seq_len: int,
        output: Path,
        counts: Path,
        special: tuple[int, int, int],
        separate_domains: bool,
    ):
        super().__init__()
        self.tokenizer_file = tokenizer_file
        self.dictionary = dictionary
        self.seq_len = seq_len
        self.output = output
        self.counts = counts
        self.special = special
        self.separate_domains = separate_domains

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        # One process a task: threads of the tokenizer within them would only compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        encoder = Encoder(self.tokenizer_file, self.dictionary)
        domains = collections.defaultdict(collections.Counter)
        padding = 0

        def encoded() -> Iterator[tuple[str, np.ndarray]]:
            title = f"task {rank + 1} of {world_size}"
            progress = tqdm(desc=title, unit=" tokens", unit_scale=True, disable=None, leave=False)
            with progress:
                for batch in _batches(data):
                    arrays = encoder.encode([document.text for document in batch])
                    for document, array in zip(batch, arrays, strict=True):
                        name = "{domain} ({script})".format_map(document.metadata)
                        domains[name].update(
                            documents=1, characters=len(document.text), tokens=len(array)
                        )
                        yield name, array
                    progress.update(sum(map(len, arrays)))

        def rows(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal padding
            for row in pack(documents, self.seq_len, *self.special):
                padding += int((row == self.special[2]).sum())
                yield row

        prefix = f"rows-{rank:05}"
        if self.separate_domains:
            by_domain = collections.defaultdict(list)
            for name, array in encoded():
                by_domain[name].append(array)
            shards = []
            for number, name in enumerate(sorted(by_domain)):
                separate = f"{prefix}-{number:03}"
                written = write_shards(self.output, separate, rows(by_domain[name]), self.seq_len)
                shards += [{**shard, "domain": name} for shard in written]
        else:
            documents = (array for _, array in encoded())
            shards = write_shards(self.output, prefix, rows(documents), self.seq_len)
        facts = {"domains": domains, "padding": padding, "shards": shards}
        write_json(self.counts / f"{rank:05}.json", facts)


def _batches(data: DocumentsPipeline) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in data:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class WriteManifest(PipelineStep):
    """Puts the tasks' shards together: what makes the folder a row set.

    Args:
        output: folder of the shards.
        counts: folder of the tasks' counts.
        report: folder of the tasks' reports of bad input.
        statistics: folders in which datatrove left each task's statistics, for the filters.
        tasks: how many there were.
        seq_len: tokens of a row.
        facts: what else the manifest shall say.
    """

    type = "WRITER"
    name = "manifest"

    def __init__(
        self,
        output: Path,
        counts: Path,
        report: Path,
        statistics: list[Path],
        tasks: int,
        seq_len: int,
        facts: dict,
    ):
        super().__init__()
        self.output = output
        self.counts = counts
        self.report = report
        self.statistics = statistics
        self.tasks = tasks
        self.seq_len = seq_len
        self.facts = facts

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        parts = [
            json.loads((self.counts / f"{task:05}.json").read_text(encoding="utf-8"))
            for task in range(self.tasks)
        ]
        shards = [shard for part in parts for shard in part["shards"]]
        domains = collections.defaultdict(collections.Counter)
        for part in parts:
            for name, counts in part["domains"].items():
                domains[name].update(counts)
        total = sum(domains.values(), collections.Counter())
        rows = sum(shard["rows"] for shard in shards)
        padding = sum(part["padding"] for part in parts)
        facts = {
            "documents": total["documents"],
            "characters": total["characters"],
            "tokens": total["tokens"],  # of text, without frames and padding
            "padding_share": padding / max(1, rows * self.seq_len),
            "domains": dict(sorted(domains.items())),
            "bad_input": self._bad_input(),
            "dropped": self._dropped(),
            **self.facts,
        }
        write_manifest(self.output, self.seq_len, shards, facts)

    def _bad_input(self) -> dict[str, int]:
        kinds = collections.Counter()
        for task in range(self.tasks):
            with open(self.report / f"{task:05}.jsonl", encoding="utf-8") as problems:
                kinds.update(json.loads(line)["kind"] for line in problems)
        return dict(sorted(kinds.items()))

    def _dropped(self) -> dict[str, int]:
        """Documents that each filter took out, by its name."""
        dropped = collections.Counter()
        for folder, task in itertools.product(self.statistics, range(self.tasks)):
            for step in json.loads((folder / f"{task:05}.json").read_text(encoding="utf-8")):
                count = step["stats"].get("dropped", 0)
                if count:  # a number, or its distribution where it grew by more than one at a time
                    # datatrove's names begin with the kind of step and a picture.
                    name = regex.sub(r"^\W+", "", step["name"].split(": ", 1)[-1])
                    dropped[name] += count["total"] if isinstance(count, dict) else count
        return dict(sorted(dropped.items()))
