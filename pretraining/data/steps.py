"""Reading a corpus and writing its rows, as steps that datatrove's executors run.

A step is pickled and sent to worker processes, nodes or a Ray cluster, so it holds paths and plain
values only and opens what it needs where it runs. Each task works on its own share of the corpus
and writes its own files; the last step, which has one task, puts them together.
"""

import collections
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from tqdm import tqdm

from pretraining.data.corpus import CorpusError, read_file
from pretraining.data.encoding import Encoder
from pretraining.data.executors import WorkFolder
from pretraining.data.packing import documents_in, pack
from pretraining.data.rows import write_manifest, write_shards
from pretraining.data.tokens import special_token_ids
from pretraining.files import read_json, replacing, write_json

# Documents are encoded in batches; a batch is full at so many documents or characters.
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 20


class ReadCorpus(PipelineStep):
    """Reads a task's share of the corpus: whole files, or lines if files are fewer than tasks.

    Args:
        files: the whole corpus, from `find_files`.
        text_field: the field that holds the text.
        refuse: whether bad input stops the work; otherwise it is skipped and reported.
        report: folder in which each task writes a JSON-lines file of what it skipped.
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
                if error.of_file and not wanted(1):
                    return  # the task that has the first line reports it
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
    """Reads what the filters left; that can be no document, and then there is no file."""

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        if self.data_folder.list_files():
            yield from super().run(data, rank, world_size)


class WriteRows(PipelineStep):
    """Segments, encodes and packs a task's documents; writes its shards and, last, its counts.

    Args:
        tokenizer_file: the tokenizer.json.
        dictionary: the user's words for the segmenter, or None.
        seq_len: tokens of a row.
        output: folder for the shards.
        counts: folder in which each task writes a JSON file of what it counted.
        separate_domains: no row holds documents of two domains or scripts, and each shard names
            its own and, for each of its documents, the line of the corpus, see `line_number_of`.
            A task then keeps all of its tokens in memory: for held-out text.
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
        separate_domains: bool,
    ):
        super().__init__()
        self.tokenizer_file = tokenizer_file
        self.dictionary = dictionary
        self.seq_len = seq_len
        self.output = output
        self.counts = counts
        self.separate_domains = separate_domains

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        # Each task has a process of its own, so threads of the tokenizer would only compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        encoder = Encoder(self.tokenizer_file, self.dictionary)
        special = special_token_ids(encoder.tokenizer)
        frame = [special[name] for name in ("cls_id", "sep_id", "pad_id")]
        domains = collections.defaultdict(collections.Counter)
        padding = 0

        def encoded() -> Iterator[tuple[str, int, np.ndarray]]:
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
                        yield name, line_number_of(document.id), array
                    progress.update(sum(map(len, arrays)))

        def rows(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal padding
            for row in pack(documents, self.seq_len, *frame):
                padding += int((row == special["pad_id"]).sum())
                yield row

        prefix = f"rows-{rank:05}"
        if self.separate_domains:
            by_domain = collections.defaultdict(list)
            for name, line, array in encoded():
                by_domain[name].append((line, array))
            shards = []
            for number, name in enumerate(sorted(by_domain)):
                lines, documents = zip(*by_domain[name], strict=True)
                packed = list(rows(documents))
                written = write_shards(self.output, f"{prefix}-{number:03}", packed, self.seq_len)
                indices = documents_in(packed, documents, self.seq_len, *frame[:2])
                for shard in written:
                    held = itertools.chain(*itertools.islice(indices, shard["rows"]))
                    of_documents = [lines[index] for index in held]
                    shards.append({**shard, "domain": name, "documents": of_documents})
        else:
            documents = (array for _, _, array in encoded())
            shards = write_shards(self.output, prefix, rows(documents), self.seq_len)
        facts = {"domains": domains, "padding": padding, "shards": shards}
        write_json(self.counts / f"{rank:05}.json", facts)


def line_number_of(id: str) -> int:
    """A number of 32 bits for the line of the corpus that a document, or a part of one, is from.

    Args:
        id: FILE:LINE, or FILE:LINE#NUMBER of a part. Where the file lies makes no difference, so
            the rows do not depend on it; two files of one name share their numbers.
    """
    line = re.sub(r"#\d+$", "", id).rpartition("/")[2]
    return zlib.crc32(line.encode())


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
        work: where the tasks left their counts, reports and statistics.
        stages: names of the stages whose statistics tell what the filters dropped.
        seq_len: tokens of a row.
        facts: what else the manifest says; `tasks` among them is the number of tasks.
    """

    type = "WRITER"
    name = "manifest"

    def __init__(
        self, output: Path, work: WorkFolder, stages: list[str], seq_len: int, facts: dict
    ):
        super().__init__()
        self.output = output
        self.work = work
        self.stages = stages
        self.seq_len = seq_len
        self.facts = facts

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        parts = [read_json(self.work.counts / f"{task:05}.json") for task in self._tasks()]
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

    def _tasks(self) -> range:
        return range(self.facts["tasks"])

    def _bad_input(self) -> dict[str, int]:
        kinds = collections.Counter()
        for task in self._tasks():
            with open(self.work.bad_input / f"{task:05}.jsonl", encoding="utf-8") as problems:
                kinds.update(json.loads(line)["kind"] for line in problems)
        return dict(sorted(kinds.items()))

    def _dropped(self) -> dict[str, int]:
        """The number of documents that each filter dropped, by its name."""
        dropped = collections.Counter()
        for stage, task in itertools.product(self.stages, self._tasks()):
            for step in read_json(self.work.logs(stage) / "stats" / f"{task:05}.json"):
                count = step["stats"].get("dropped", 0)
                if count:  # a number, or its distribution where it grew by more than one at a time
                    # datatrove's names begin with the kind of step and an emoji.
                    name = re.sub(r"^\W+", "", step["name"].split(": ", 1)[-1])
                    dropped[name] += count["total"] if isinstance(count, dict) else count
        return dict(sorted(dropped.items()))
