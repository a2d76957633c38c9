"""Trains the tokenizer: BPE over characters with byte fallback, whose merges respect words.

    python -m pretraining.train_tokenizer --corpus data/train-*.jsonl.xz --output . \\
        --report data/valid.jsonl.xz --beside vocab.txt
"""

import argparse
from pathlib import Path

from pretraining.command import readable_errors
from pretraining.data.corpus import find_files, read_documents
from pretraining.data.rows import MAX_VOCAB_SIZE
from pretraining.data.weighting import read_weights
from pretraining.files import check_file
from pretraining.tokenizer.report import open_peer, print_report
from pretraining.tokenizer.training import save, smallest_size, train
from pretraining.tokenizer_report import add_peers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument(
        "--characters_per_stratum",
        type=int,
        default=17_000_000,
        help="most text to learn from for each domain and script (default: 17,000,000)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="YAML file, a domain and its weight a line: how many times as often its text counts",
    )
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", nargs="+", help="held-out corpus to measure on")
    add_peers(parser)
    arguments = parser.parse_args()
    smallest = smallest_size()
    if not smallest < arguments.vocab_size <= MAX_VOCAB_SIZE:
        parser.error(f"--vocab_size must be more than {smallest} and at most {MAX_VOCAB_SIZE}.")
    if arguments.characters_per_stratum < 1:
        parser.error("--characters_per_stratum must be at least 1.")
    with readable_errors("train_tokenizer"):
        check_file(arguments.output / "tokenizer.json")
        if arguments.report:
            find_files(arguments.report)
        peers = {name: open_peer(name) for name in arguments.beside}
        documents = read_documents(arguments.corpus, arguments.text_field)
        content = train(
            documents,
            arguments.vocab_size,
            arguments.characters_per_stratum,
            arguments.seed,
            read_weights(arguments.weights),
        )
        save(content, arguments.output)
        if arguments.report:
            documents = read_documents(arguments.report, arguments.text_field)
            print_report(arguments.output / "tokenizer.json", documents, peers)


if __name__ == "__main__":
    main()
