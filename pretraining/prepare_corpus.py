"""Text → rows: filters, segments words, encodes, marks word starts, packs.

    python -m pretraining.prepare_corpus --corpus data/train-*.jsonl.xz --tokenizer . \\
        --seq_len 1024 --output rows/train-1024

    python -m pretraining.prepare_corpus --corpus hf://datasets/USER/NAME --tokenizer . \\
        --seq_len 1024 --output rows/web-1024 --filters configs/filters.yaml --tasks 2000 \\
        --executor slurm --slurm partition=cpu time=12:00:00

The corpus is JSON lines (.jsonl, with .gz, .xz or .zst), Parquet or text files. The work is split
into tasks, each of which writes shards of its own; the number of tasks decides which documents
share rows, the number of workers decides nothing but the time. Interrupted, the same command does
what is missing. What is done, and what was left out and why, is in OUTPUT.work.
"""

import argparse
import inspect
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml
from tokenizers import Tokenizer

from pretraining.data.corpus import find_files
from pretraining.data.encoding import Encoder, first_ordinary_id, tokenizer_sha256
from pretraining.data.rows import MANIFEST, RowsError
from pretraining.files import sha256_of, write_json

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = {"cls_id": "[CLS]", "sep_id": "[SEP]", "pad_id": "[PAD]", "mask_id": "[MASK]"}
FILTERS = ("length", "chinese", "repetition", "exact_deduplication", "minhash")
PLAN = "plan.json"


def read_filters(file: Path | None) -> dict:
    """Filters and their thresholds, from a YAML file.

    Raises:
        ValueError: if the file is not one, or names a filter or threshold that does not exist.
    """
    if file is None:
        return {}
    try:
        filters = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not YAML: {error}") from error
    if not isinstance(filters, dict):
        raise ValueError(
            f"{file}: must hold filters and their thresholds, like configs/filters.yaml."
        )
    for name, thresholds in filters.items():
        if name not in FILTERS:
            raise ValueError(f"{file}: no filter {name!r}; there are {', '.join(FILTERS)}.")
        if not isinstance(thresholds or {}, dict):
            raise ValueError(f"{file}: {name}: must hold thresholds, like configs/filters.yaml.")
        known = _thresholds(name)
        if unknown := [each for each in thresholds or {} if each not in known]:
            there = ", ".join(known) or "none"
            raise ValueError(f"{file}: {name}: no threshold {unknown[0]!r}; there are {there}.")
    return {name: thresholds or {} for name, thresholds in filters.items()}


def _thresholds(name: str) -> list[str]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import GopherRepetitionFilter

    from pretraining.data.steps import HanFilter, LengthFilter

    made = {
        "length": LengthFilter,
        "chinese": HanFilter,
        "repetition": GopherRepetitionFilter,
        "minhash": MinhashConfig,
    }
    parameters = list(inspect.signature(made[name]).parameters) if name in made else []
    # What is not a threshold: objects, which YAML cannot hold.
    objects = ("exclusion_writer", "language", "hash_config", "norm_config")
    return [each for each in parameters if each not in objects]


def slurm_options(pairs: list[str]) -> dict:
    """KEY=VALUE arguments for datatrove's Slurm executor; whole numbers become numbers.

    Raises:
        ValueError: if one has another form, or a key that the executor does not know.
    """
    from datatrove.executor import SlurmPipelineExecutor

    known = list(inspect.signature(SlurmPipelineExecutor).parameters)
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--slurm {pair}: give KEY=VALUE, such as partition=cpu.")
        if key not in known:
            raise ValueError(f"--slurm {pair}: no option {key!r}; there are {', '.join(known)}.")
        options[key] = int(value) if value.isdecimal() else value
    return options


def prepare(
    corpus: list[str],
    tokenizer_file: Path,
    seq_len: int,
    output: Path,
    workers: int = 1,
    tasks: int | None = None,
    filters: dict | None = None,
    dictionary: Path | None = None,
    text_field: str = "text",
    refuse: bool = False,
    separate_domains: bool = False,
    executor: str = "local",
    options: dict | None = None,
    dry_run: bool = False,
) -> dict | None:
    """Writes the row set of a corpus, or submits the jobs that will.

    Args:
        corpus: see `find_files`.
        workers: tasks at a time; -1 for all at once.
        tasks: parts of the work; None for one a file, and at least one a worker.
        filters: from `read_filters`.
        dictionary: words for the segmenter beside its own.
        text_field: the field that holds the text.
        refuse: whether bad input stops the work; else it is skipped and reported.
        separate_domains: a row holds documents of one domain and script only, so that held-out
            text can be evaluated by domain.
        executor: "local", "slurm" or "ray".
        options: further arguments of datatrove's executor, such as Slurm's partition.
        dry_run: print what would be submitted to Slurm, and do nothing.

    Returns:
        The manifest, or None where the jobs have only been submitted.

    Raises:
        ValueError, OSError: on input that cannot be used; no half-written file is left.
    """
    output = output.resolve()
    if (output / MANIFEST).exists():
        raise RowsError(f"{output} exists already; remove it or choose another --output.")
    if seq_len < 3:
        raise ValueError(f"seq_len {seq_len} has no room for a token between [CLS] and [SEP].")
    files = find_files(corpus)
    tasks = tasks or max(len(files), workers)
    facts = _facts(tokenizer_file, dictionary, filters or {})
    plan = {
        "files": files,
        "seq_len": seq_len,
        "tasks": tasks,
        "text_field": text_field,
        "separate_domains": separate_domains,
        **facts,
    }
    work = output.with_name(output.name + ".work")
    stages = _stages(
        plan, tokenizer_file.resolve(), dictionary and dictionary.resolve(), output, work, refuse
    )
    if dry_run:
        _show(stages, work, options or {})
        return None
    _agree(work / PLAN, plan)
    last = None
    for name, pipeline, number in stages:
        last = _executor(executor, options or {}, name, pipeline, number, workers, work, last)
    last.run()
    if executor == "slurm":
        print(f"submitted; {output / MANIFEST} will be written last. Logs: {work / 'logs'}")
        return None
    for folder in ("cleaned", "duplicates"):
        shutil.rmtree(work / folder, ignore_errors=True)
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    if not manifest["rows"]:
        raise RowsError(
            f"{output}: not a document was left; bad input: {manifest['bad_input']}, dropped: "
            f"{manifest['dropped']}."
        )
    return manifest


def _facts(tokenizer_file: Path, dictionary: Path | None, filters: dict) -> dict:
    """What the manifest says of the tools."""
    tokenizer: Tokenizer = Encoder(tokenizer_file, dictionary).tokenizer
    special = {name: tokenizer.token_to_id(token) for name, token in SPECIAL.items()}
    if missing := [SPECIAL[name] for name, index in special.items() if index is None]:
        raise ValueError(f"{tokenizer_file}: the special tokens {missing} are missing.")
    packages = ("tokenizers", "rjieba", "opencc", "datatrove")
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "first_ordinary_id": first_ordinary_id(tokenizer),
        "special_token_ids": special,
        "tokenizer_sha256": tokenizer_sha256(tokenizer_file),
        "dictionary_sha256": sha256_of(dictionary) if dictionary else None,
        "filters": filters,
        "versions": {name: version(name) for name in packages},
    }


def _agree(file: Path, plan: dict) -> None:
    """Leaves the plan for a restart, or checks that this is one."""
    if not file.exists():
        write_json(file, plan)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    if different := [key for key in plan if begun.get(key) != json.loads(json.dumps(plan[key]))]:
        raise RowsError(
            f"{file.parent} holds work begun with other {', '.join(different)}; repeat that "
            "command, remove the folder or choose another --output."
        )


def _stages(
    plan: dict,
    tokenizer_file: Path,
    dictionary: Path | None,
    output: Path,
    work: Path,
    refuse: bool,
) -> list[tuple[str, list, int]]:
    """Name, steps and number of tasks of each stage; each begins when the one before is done."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.filters import GopherRepetitionFilter
    from datatrove.pipeline.writers import JsonlWriter

    from pretraining.data import steps

    filters, tasks = plan["filters"], plan["tasks"]
    report, counts = work / "bad_input", work / "counts"
    documents = [steps.ReadCorpus(plan["files"], plan["text_field"], refuse, report)]
    if "length" in filters:
        documents.append(steps.LengthFilter(**filters["length"]))
    if "chinese" in filters:
        documents.append(steps.HanFilter(**filters["chinese"]))
    if "repetition" in filters:
        words = steps.ChineseWords()
        documents.append(GopherRepetitionFilter(**filters["repetition"], language=words))

    stages = []
    duplicates = work / "duplicates"
    if "exact_deduplication" in filters or "minhash" in filters:
        # Duplicates are counted off by their place among the documents, so these are put down.
        cleaned = str(work / "cleaned")
        writer = JsonlWriter(cleaned, "${rank}.jsonl.zst", compression="zstd")
        stages.append(("clean", [*documents, writer], tasks))
        documents = [steps.ReadCleaned(cleaned, compression="zstd")]
    if "exact_deduplication" in filters:
        folder = str(duplicates / "exact")
        config = ExactDedupConfig(content_getter=steps.text_of)
        stages += [
            ("exact-hashes", [*documents, ExactDedupSignature(folder, config)], tasks),
            ("exact-find", [ExactFindDedups(folder, f"{folder}-found", config)], 1),
        ]
        documents = [*documents, ExactDedupFilter(f"{folder}-found", config)]
    if "minhash" in filters:
        config = minhash.MinhashConfig(**filters["minhash"])
        signatures, buckets, removed = (
            str(duplicates / f"minhash-{name}") for name in ("signatures", "buckets", "removed")
        )
        words = steps.ChineseWords()
        sign = minhash.MinhashDedupSignature(signatures, config, language=words)
        find = minhash.MinhashDedupBuckets(signatures, buckets, config=config)
        stages += [
            ("minhash-signatures", [*documents, sign], tasks),
            ("minhash-buckets", [find], config.num_buckets),
            ("minhash-cluster", [minhash.MinhashDedupCluster(buckets, removed, config)], 1),
        ]
        documents = [*documents, minhash.MinhashDedupFilter(removed)]

    special = tuple(plan["special_token_ids"][name] for name in ("cls_id", "sep_id", "pad_id"))
    rows = steps.WriteRows(
        tokenizer_file,
        dictionary,
        plan["seq_len"],
        output,
        counts,
        special,
        plan["separate_domains"],
    )
    stages.append(("rows", [*documents, rows], tasks))
    statistics = [_logs(work, name) / "stats" for name, _, _ in stages if name in ("clean", "rows")]
    facts = {key: plan[key] for key in plan if key not in ("files", "seq_len", "text_field")}
    manifest = steps.WriteManifest(
        output, counts, report, statistics, tasks, plan["seq_len"], facts
    )
    return [*stages, ("manifest", [manifest], 1)]


def _logs(work: Path, stage: str) -> Path:
    return work / "logs" / stage


def _executor(
    kind: str,
    options: dict,
    name: str,
    pipeline: list,
    tasks: int,
    workers: int,
    work: Path,
    depends,
):
    from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

    from pretraining.data.steps import LocalExecutor

    common = {
        "pipeline": pipeline,
        "tasks": tasks,
        "workers": workers,
        "logging_dir": str(_logs(work, name)),
        "depends": depends,
        **options,
    }
    if kind == "local":
        return LocalExecutor(**{**common, "workers": min(workers, tasks)})
    if kind == "ray":
        return RayPipelineExecutor(**common)
    # The jobs start elsewhere, with this environment and this code.
    environment = f"export PYTHONPATH={ROOT}"
    if sys.prefix != sys.base_prefix:
        environment = f"source {sys.prefix}/bin/activate; {environment}"
    return SlurmPipelineExecutor(job_name=name, **{"env_command": environment, **common})


def _show(stages, work: Path, options: dict) -> None:
    """Prints the scripts that Slurm would be given."""
    begun = work.exists()
    for name, pipeline, tasks in stages:
        job = _executor("slurm", options, name, pipeline, tasks, -1, work, None)
        command = f"srun -l -n 1 launch_pickled_pipeline {_logs(work, name) / 'executor.pik'}"
        print(job.get_launch_file_contents(job.get_sbatch_args(tasks), command))
    if not begun:  # datatrove makes Slurm's log folders on the way
        shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--tokenizer", type=Path, default=Path("."), help="its folder")
    parser.add_argument("--seq_len", type=int, required=True, help="tokens of a row")
    parser.add_argument("--output", type=Path, required=True, help="folder for the row set")
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    parser.add_argument("--filters", type=Path, help="YAML file, see configs/filters.yaml")
    parser.add_argument("--user_dictionary", type=Path, help="a word a line, for the segmenter")
    parser.add_argument(
        "--bad_input",
        choices=("skip", "refuse"),
        default="skip",
        help="what cannot be read is left out and reported, or stops the work",
    )
    parser.add_argument(
        "--separate_domains",
        action="store_true",
        help="one domain and script a row: for held-out text, evaluated by domain",
    )
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--tasks", type=int, help="parts of the work (one a file)")
    parser.add_argument("--workers", type=int, help="tasks at a time (the processors)")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of SlurmPipelineExecutor"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what Slurm would be given")
    arguments = parser.parse_args()
    if arguments.slurm and arguments.executor != "slurm":
        parser.error("--slurm is of use with --executor slurm only.")
    start = time.perf_counter()
    try:
        manifest = prepare(
            arguments.corpus,
            arguments.tokenizer / "tokenizer.json",
            arguments.seq_len,
            arguments.output,
            workers=arguments.workers or (os.cpu_count() if arguments.executor == "local" else -1),
            tasks=arguments.tasks,
            filters=read_filters(arguments.filters),
            dictionary=arguments.user_dictionary,
            text_field=arguments.text_field,
            refuse=arguments.bad_input == "refuse",
            separate_domains=arguments.separate_domains,
            executor=arguments.executor,
            options=slurm_options(arguments.slurm),
            dry_run=arguments.dry_run,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"prepare_corpus: {error}")
    if manifest:
        seconds = time.perf_counter() - start
        print(
            f"{arguments.output}: {manifest['documents']:,} documents, "
            f"{manifest['characters']:,} characters, {manifest['tokens']:,} tokens "
            f"({manifest['characters'] / max(1, manifest['tokens']):.3f} characters each) in "
            f"{manifest['rows']:,} rows of {arguments.seq_len}, "
            f"{manifest['padding_share']:.2%} padding; "
            f"{manifest['tokens'] / seconds:,.0f} tokens/s"
        )
        for what in ("bad_input", "dropped"):
            for name, number in manifest[what].items():
                print(f"{what}: {name}: {number:,}")


if __name__ == "__main__":
    main()
