"""Measures a tokenizer on held-out text, beside a smaller one of the same training and others.

    python -m pretraining.tokenizer_report --tokenizer . --corpus data/valid.jsonl.xz \\
        --beside vocab.txt

Prints a Markdown table: characters per token by domain and script, characters and tokens spelled in
bytes, Han tokens that cross a border between words, and what others do with the same text.
"""

import argparse
from pathlib import Path

from pretraining.command import readable_errors
from pretraining.data.corpus import read_documents
from pretraining.tokenizer.report import open_peer, print_report


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beside",
        nargs="*",
        default=[],
        help="tokenizers to report beside: a BERT vocabulary (.txt), folder or Hub repository",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    add_peers(parser)
    arguments = parser.parse_args()
    with readable_errors("tokenizer_report"):
        peers = {name: open_peer(name) for name in arguments.beside}
        documents = read_documents(arguments.corpus, arguments.text_field)
        print_report(arguments.tokenizer / "tokenizer.json", documents, peers)


if __name__ == "__main__":
    main()
