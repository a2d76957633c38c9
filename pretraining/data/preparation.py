"""From text to rows: what a preparation is made of, and how it runs.

Documents are read, filtered, cut into words, encoded and packed into rows. The work is divided into
tasks, each of which writes shards of its own; the number of tasks decides which documents share
rows, the number of workers changes nothing but the time. What is done is kept in a folder beside
the rows, and a restart with the same settings does what is missing.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from datatrove.pipeline.writers import JsonlWriter

from pretraining.data.corpus import find_files, sizes_of
from pretraining.data.encoding import Encoder
from pretraining.data.executors import Execution, Stage, WorkFolder
from pretraining.data.filters import (
    allow_open_files,
    check_filters,
    document_filters,
    exact_deduplication,
    finds_duplicates,
    minhash_deduplication,
)
from pretraining.data.rows import MANIFEST, RowsError
from pretraining.data.shortening import ShortenDocuments, Shortening
from pretraining.data.steps import ReadCleaned, ReadCorpus, WriteManifest, WriteRows
from pretraining.data.tokens import first_ordinary_id, special_token_ids, tokenizer_sha256
from pretraining.data.weighting import WeightDocuments, check_weights
from pretraining.files import read_json, sha256_of, write_json

_HERE = Execution()
_PACKAGES = ("tokenizers", "rjieba", "opencc", "datatrove")
# What the plan of work begun before a setting existed means by leaving it out.
_EARLIER = {"shortening": asdict(Shortening()), "weights": {}, "seed": 0}


@dataclass(frozen=True)
class Preparation:
    """The settings of a row set. Building one checks them; it writes and contacts nothing.

    Attributes:
        corpus: files, folders and patterns, see `find_files`.
        tokenizer_file: the tokenizer.json.
        seq_len: tokens of a row.
        output: folder for the row set.
        tasks: parts of the work; None for one a file, and at least one a worker.
        filters: the wanted ones with their thresholds, from `read_filters`.
        dictionary: the user's words for the segmenter, see `Segmenter`; None for none.
        text_field: the field of the corpus that holds the text.
        refuse_bad_input: whether bad input stops the work; otherwise it is skipped and reported.
        separate_domains: a row holds documents of one domain and script only, so that held-out
            text can be evaluated by domain.
        shortening: which documents are cut into short texts; by default none.
        weights: how often the documents of a domain are written, see `copies`; 1 where the domain
            is not named.
        seed: of what `shortening` and `weights` draw.
        facts: what the manifest says of the tools.
        unused_words: a message for each word of the dictionary that has no effect.

    Raises:
        ImportError: if rjieba is not installed.
        OSError, ValueError: on settings that cannot be used; `RowsError`, a ValueError, if there
            is a row set already, and nothing that says how it was made.
    """

    corpus: Sequence[str]
    tokenizer_file: Path
    seq_len: int
    output: Path
    tasks: int | None = None
    filters: Mapping[str, dict] = field(default_factory=dict)
    dictionary: Path | None = None
    text_field: str = "text"
    refuse_bad_input: bool = False
    separate_domains: bool = False
    shortening: Shortening = field(default_factory=Shortening)
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    facts: dict = field(init=False, repr=False, compare=False)
    unused_words: list[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.finished and not self.work.plan.exists():
            raise RowsError(
                f"{self.output} exists already; remove it and {self.work.path}, or choose another "
                "--output."
            )
        if self.seq_len < 3:
            raise ValueError(
                f"seq_len {self.seq_len} has no room for a token between [CLS] and [SEP]."
            )
        if self.tasks is not None and self.tasks < 1:
            raise ValueError(f"tasks {self.tasks}: give at least 1.")
        check_filters(self.filters)
        check_weights(self.weights)
        encoder = Encoder(self.tokenizer_file, self.dictionary)
        object.__setattr__(self, "facts", self._facts(encoder))
        object.__setattr__(self, "unused_words", encoder.segmenter.unused_words())

    @property
    def finished(self) -> bool:
        """Whether the row set is there."""
        return (self.output / MANIFEST).exists()

    @property
    def work(self) -> WorkFolder:
        """Where the state of the work is kept: OUTPUT.work."""
        output = self.output.resolve()
        return WorkFolder(output.with_name(output.name + ".work"))

    def run(self, execution: Execution = _HERE) -> dict | None:
        """Writes the row set, or submits the Slurm jobs that will; one that is finished is kept.

        Returns:
            The manifest, or None if the jobs have only been submitted.

        Raises:
            OSError, ValueError: on input that cannot be used, or if OUTPUT.work was begun with
                other settings or files that have changed. No half-written file is left.
        """
        plan = self._plan(_corpus_files(self.corpus), execution.workers)
        stages = self._stages(plan)
        if execution.kind == "local" and finds_duplicates(self.filters):
            allow_open_files(plan["tasks"])
        sizes = dict(zip(plan["files"], sizes_of(plan["files"]), strict=True))
        if self._begun(plan):
            self._check_what_was_written()
            self._check_what_was_read(plan, sizes)
        elif any(self.output.glob("*.arrow")):
            # Readers take every shard of the folder, those too that no manifest names.
            raise RowsError(
                f"{self.output} holds shards of work that was given up; remove it and "
                f"{self.work.path}, and repeat the command."
            )
        if not self.finished:
            write_json(self.work.plan, plan | {"sizes": sizes})
            execution.run(stages, self.work)
            if execution.kind == "slurm":
                return None
            for folder in (self.work.cleaned, self.work.duplicates):
                shutil.rmtree(folder, ignore_errors=True)
        manifest = read_json(self.output / MANIFEST)
        if not manifest["rows"]:
            raise RowsError(
                f"{self.output}: no document was left; bad input: {manifest['bad_input']} (listed "
                f"in {self.work.bad_input}), dropped: {manifest['dropped']}."
            )
        return manifest

    def scripts(self, execution: Execution) -> list[str]:
        """The scripts that Slurm would be given. Writes and contacts nothing.

        Raises:
            ValueError: if the number of tasks depends on the files of a corpus elsewhere, or
                OUTPUT.work was begun with other settings.
        """
        elsewhere = [path for path in self.corpus if "://" in path]
        if elsewhere and self.tasks is None:
            raise ValueError(
                f"{elsewhere[0]}: the number of its files is not known without contacting it; give "
                "--tasks."
            )
        files = [*elsewhere, *_corpus_files([path for path in self.corpus if "://" not in path])]
        plan = self._plan(files, execution.workers)
        self._begun({key: plan[key] for key in plan if key != "files" or not elsewhere})
        return execution.scripts(self._stages(plan), self.work)

    def _facts(self, encoder: Encoder) -> dict:
        tokenizer = encoder.tokenizer
        try:
            special, first = special_token_ids(tokenizer), first_ordinary_id(tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.tokenizer_file}: {error}") from error
        return {
            "vocab_size": tokenizer.get_vocab_size(),
            "first_ordinary_id": first,
            "special_token_ids": special,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer_file),
            "dictionary_sha256": sha256_of(self.dictionary) if self.dictionary else None,
            "filters": dict(self.filters),
            "versions": {name: version(name) for name in _PACKAGES},
        }

    def _plan(self, files: list[str], workers: int) -> dict:
        """What decides the rows, as a restart compares it."""
        return {
            "files": files,
            "seq_len": self.seq_len,
            "tasks": self._tasks(files, workers),
            "text_field": self.text_field,
            "separate_domains": self.separate_domains,
            "shortening": asdict(self.shortening),
            "weights": dict(self.weights),
            "seed": self.seed,
            **self.facts,
        }

    def _tasks(self, files: list[str], workers: int) -> int:
        """How many tasks there are: as many as before, where a restart does not say."""
        if self.tasks is None and self.work.plan.exists():
            return read_json(self.work.plan)["tasks"]
        return self.tasks or max(len(files), workers)

    def _begun(self, plan: dict) -> bool:
        """Whether the work has been begun.

        Raises:
            RowsError: if it was with another plan.
        """
        if not self.work.plan.exists():
            return False
        begun = _EARLIER | read_json(self.work.plan)
        plan = json.loads(json.dumps(plan))
        if different := [key for key in plan if begun.get(key) != plan[key]]:
            raise RowsError(
                f"{self.work.path} holds work begun with other {', '.join(different)}; repeat that "
                f"command, remove it and {self.output}, or choose another --output."
            )
        return True

    def _check_what_was_written(self) -> None:
        """Checks that the shards of the tasks that are done are there.

        Raises:
            RowsError: if one is not.
        """
        for counts in sorted(self.work.counts.glob("*.json")):
            for shard in read_json(counts)["shards"]:
                if not (self.output / shard["file"]).exists():
                    raise RowsError(
                        f"{self.output / shard['file']} is missing, though {self.work.path} says "
                        "that it was written; remove that folder too and repeat the command."
                    )

    def _check_what_was_read(self, plan: dict, sizes: dict[str, int | None]) -> None:
        """Checks that files which tasks have read are what they were: shares go by lines.

        Raises:
            RowsError: if one has another size. One that no task has finished may be mended.
        """
        before = read_json(self.work.plan).get("sizes", {})
        tasks, count = plan["tasks"], len(plan["files"])
        done = {int(report.stem) for report in self.work.bad_input.glob("*.jsonl")}
        for index, file in enumerate(plan["files"]):
            readers = range(tasks) if count < tasks else [index % tasks]
            if before.get(file, sizes[file]) != sizes[file] and done.intersection(readers):
                raise RowsError(
                    f"{file} has changed since it was read; remove {self.work.path} and "
                    f"{self.output}, and repeat the command."
                )

    def _stages(self, plan: dict) -> list[Stage]:
        """The stages of the work, in order."""
        filters, tasks, work = self.filters, plan["tasks"], self.work
        documents = [
            ReadCorpus(plan["files"], self.text_field, self.refuse_bad_input, work.bad_input),
            *document_filters(filters),
        ]
        stages, filtering = [], ["rows"]
        if finds_duplicates(filters):
            # Duplicates are counted by their place among the documents, so these are written down.
            writer = JsonlWriter(str(work.cleaned), "${rank}.jsonl.zst", compression="zstd")
            stages.append(Stage("clean", [*documents, writer], tasks))
            filtering = ["clean", "rows"]
            documents = [ReadCleaned(str(work.cleaned), compression="zstd")]
        if "exact_deduplication" in filters:
            found, keep = exact_deduplication(documents, work.duplicates / "exact", tasks)
            stages, documents = stages + found, [*documents, keep]
        if "minhash" in filters:
            found, keep = minhash_deduplication(
                documents, work.duplicates / "minhash", tasks, filters["minhash"]
            )
            stages, documents = stages + found, [*documents, keep]
        if self.weights:
            documents = [*documents, WeightDocuments(self.weights, self.seed)]
        if self.shortening.share:
            documents = [*documents, ShortenDocuments(self.shortening, self.seed)]
        dictionary = self.dictionary and self.dictionary.resolve()
        output = self.output.resolve()
        rows = WriteRows(
            self.tokenizer_file.resolve(),
            dictionary,
            self.seq_len,
            output,
            work.counts,
            self.separate_domains,
        )
        chosen = ("tasks", "separate_domains", "shortening", "weights", "seed")
        facts = {key: plan[key] for key in (*chosen, *self.facts)}
        manifest = WriteManifest(output, work, filtering, self.seq_len, facts)
        return [
            *stages,
            Stage("rows", [*documents, rows], tasks),
            Stage("manifest", [manifest], 1),
        ]


def _corpus_files(paths: Sequence[str]) -> list[str]:
    """The corpus files, without what a preparation has written beside its output among them."""

    def is_work(folder: Path) -> bool:
        return folder.name.endswith(".work") and WorkFolder(folder).plan.exists()

    return [
        file
        for file in find_files(paths)
        if "://" in file or not any(map(is_work, Path(file).parents))
    ]
