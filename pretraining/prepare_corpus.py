"""Text → rows: filters, segments words, encodes, marks word starts, packs.

    python -m pretraining.prepare_corpus --corpus data/train-*.jsonl.xz --tokenizer . \\
        --seq_len 1024 --output rows/train-1024

    python -m pretraining.prepare_corpus --corpus hf://datasets/USER/NAME --tokenizer . \\
        --seq_len 1024 --output rows/web-1024 --filters configs/filters.yaml --tasks 2000 \\
        --executor slurm --slurm partition=cpu time=12:00:00

The corpus is JSON lines (.jsonl, with .gz, .xz or .zst), Parquet or text files, in UTF-8. The work
is divided into tasks, each of which writes shards of its own; the number of tasks decides which
documents share rows, the number of workers changes nothing but the time. After an interruption, the
same command does what is missing, and nothing where nothing is. OUTPUT.work holds what is done, and
what was left out and why.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from pretraining.command import readable_errors
from pretraining.data.corpus import passed_over
from pretraining.data.executors import Execution, slurm_options
from pretraining.data.filters import read_filters
from pretraining.data.preparation import Preparation
from pretraining.data.rows import MANIFEST
from pretraining.data.shortening import UNITS, Shortening
from pretraining.data.weighting import read_weights, unused_weights


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--tokenizer", type=Path, default=Path("."), help="its folder")
    parser.add_argument("--seq_len", type=int, required=True, help="tokens of a row")
    parser.add_argument("--output", type=Path, required=True, help="folder for the row set")
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    parser.add_argument("--filters", type=Path, help="YAML file, see configs/filters.yaml")
    parser.add_argument(
        "--user_dictionary",
        type=Path,
        help="jieba user dictionary: a word a line, for the segmenter",
    )
    parser.add_argument(
        "--bad_input",
        choices=("skip", "refuse"),
        default="skip",
        help="what cannot be read is skipped and reported, or stops the work",
    )
    parser.add_argument(
        "--separate_domains",
        action="store_true",
        help="one domain and script a row: for held-out text, evaluated by domain",
    )
    parser.add_argument(
        "--short_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the documents, 0 to 1, that are cut into short texts",
    )
    parser.add_argument(
        "--short_unit",
        choices=UNITS,
        default="mixed",
        help="what short texts are: sentences and passages, or sentences alone",
    )
    parser.add_argument(
        "--weights", type=Path, help="YAML file with a line DOMAIN: WEIGHT for each"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="decides which documents are cut, dropped or repeated"
    )
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument(
        "--tasks",
        type=int,
        help="parts of the work (default: as many as files, or workers if there are more)",
    )
    parser.add_argument("--workers", type=int, help="tasks at a time (default: the processors)")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of SlurmPipelineExecutor"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what Slurm would be given, and do nothing"
    )
    arguments = parser.parse_args()
    if arguments.executor != "slurm" and (arguments.slurm or arguments.dry_run):
        option = "--slurm" if arguments.slurm else "--dry-run"
        parser.error(f"{option} needs --executor slurm.")
    if arguments.short_unit != Shortening().unit and not arguments.short_share:
        parser.error("--short_unit needs --short_share.")
    return arguments


def preparation_of(arguments: argparse.Namespace) -> Preparation:
    return Preparation(
        corpus=arguments.corpus,
        tokenizer_file=arguments.tokenizer / "tokenizer.json",
        seq_len=arguments.seq_len,
        output=arguments.output,
        tasks=arguments.tasks,
        filters=read_filters(arguments.filters),
        dictionary=arguments.user_dictionary,
        text_field=arguments.text_field,
        refuse_bad_input=arguments.bad_input == "refuse",
        separate_domains=arguments.separate_domains,
        shortening=Shortening(arguments.short_share, arguments.short_unit),
        weights=read_weights(arguments.weights),
        seed=arguments.seed,
    )


def print_summary(preparation: Preparation, manifest: dict, how: str) -> None:
    print(
        f"{preparation.output}: {manifest['documents']:,} documents, "
        f"{manifest['characters']:,} characters, {manifest['tokens']:,} tokens "
        f"({manifest['characters'] / max(1, manifest['tokens']):.3f} characters each) in "
        f"{manifest['rows']:,} rows of {preparation.seq_len}, "
        f"{manifest['padding_share']:.2%} padding; {how}"
    )
    for what in ("bad_input", "dropped"):
        for name, number in manifest[what].items():
            print(f"{what}: {name}: {number:,}")
    for name in unused_weights(manifest):
        print(f"weights: {name}: no document of this domain is in the rows")


def main() -> None:
    arguments = parse()
    start = time.perf_counter()
    with readable_errors("prepare_corpus"):
        workers = arguments.workers or (os.cpu_count() if arguments.executor == "local" else -1)
        execution = Execution(arguments.executor, workers, slurm_options(arguments.slurm))
        preparation = preparation_of(arguments)
        for message in preparation.unused_words:
            print(message, file=sys.stderr)
        if arguments.dry_run:
            print("\n".join(preparation.scripts(execution)))
            return
        for ending, count in passed_over(arguments.corpus).items():
            print(f"no corpus files, left out: {count:,} × {ending}", file=sys.stderr)
        finished = preparation.finished
        manifest = preparation.run(execution)
    if manifest is None:
        print(
            f"submitted; {preparation.output / MANIFEST} will be written last. Logs: "
            f"{preparation.work.path / 'logs'}"
        )
    else:
        speed = manifest["tokens"] / (time.perf_counter() - start)
        how = "finished before, nothing to do" if finished else f"{speed:,.0f} tokens/s"
        print_summary(preparation, manifest, how)


if __name__ == "__main__":
    main()
