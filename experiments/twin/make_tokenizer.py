"""Writes the twin's tokenizer: BERT's, with the vocabulary of a file.

    python -m experiments.twin.make_tokenizer --vocab vocab.txt --output runs/twin/tokenizer

The vocabulary is that of bert-base-chinese, 21,128 entries, one a line. The folder that is written
is what `prepare_corpus --tokenizer` and `train_twin --tokenizer` take.
"""

import argparse
from pathlib import Path

from transformers import BertTokenizer

from pretraining.command import readable_errors
from pretraining.data.tokens import SPECIAL_TOKENS
from pretraining.files import read_text


def read_vocabulary(file: Path) -> dict[str, int]:
    """The id of each entry: its line, from 0.

    Raises:
        OSError, ValueError: if it cannot be read, names an entry twice or lacks a special token.
    """
    entries = read_text(file).removesuffix("\n").split("\n")
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    if len(vocabulary) < len(entries):
        twice = next(each for number, each in enumerate(entries) if vocabulary[each] != number)
        raise ValueError(f"{file}: the entry {twice!r} stands there twice; remove one.")
    if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        raise ValueError(f"{file}: {', '.join(missing)} missing; give a vocabulary of BERT's kind.")
    return vocabulary


def make_tokenizer(vocab: Path, output: Path) -> BertTokenizer:
    """Writes the tokenizer folder; errors as `read_vocabulary` has them."""
    # `vocab_file=` would leave five tokens without an error.
    tokenizer = BertTokenizer(vocab=read_vocabulary(vocab), do_lower_case=True)
    tokenizer.save_pretrained(output)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=Path, required=True, help="its entries, one a line")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tokenizer")
    arguments = parser.parse_args()
    with readable_errors("make_tokenizer"):
        tokenizer = make_tokenizer(arguments.vocab, arguments.output)
    print(f"{arguments.output}: {len(tokenizer):,} entries")


if __name__ == "__main__":
    main()
