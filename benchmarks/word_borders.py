"""How well the word borders in prepared rows agree with a treebank's.

    python benchmarks/word_borders.py --treebank zh_gsdsimp-ud-dev.conllu zh_gsd-ud-dev.conllu

Each sentence goes the whole way: segmented, encoded, word starts marked in the 16th bits; then the
borders are read from ids and bits alone. F1 of the places where a word begins.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_collator_wwm import split_row
from pretraining.data.encoding import Encoder

ROOT = Path(__file__).resolve().parent.parent


def read_sentences(file: Path) -> Iterator[list[tuple[str, bool]]]:
    """The (word, whether a space follows) of each sentence of a CoNLL-U file."""
    words = []
    for line in file.read_text(encoding="utf-8").split("\n"):
        fields = line.split("\t")
        if fields[0].isdecimal():
            words.append((fields[1], "SpaceAfter=No" not in fields[9]))
        elif not line and words:
            yield words
            words = []


def f1(encoder: Encoder, file: Path) -> float:
    agreed = given = found = 0
    for words in read_sentences(file):
        text, treebank = "", set()
        for word, spaced in words:
            treebank.add(len(text))
            text += word + " " * spaced
        ids, starts = split_row(encoder.encode([text])[0])
        lengths = encoder.lengths[ids]
        rows = set((lengths.cumsum() - lengths)[starts].tolist())
        rows = {start for start in rows if text[start] != " "}
        agreed += len(treebank & rows)
        given += len(treebank)
        found += len(rows)
    return 2 * agreed / (given + found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--treebank", type=Path, nargs="+", required=True, help=".conllu files")
    arguments = parser.parse_args()
    encoder = Encoder(ROOT / "tokenizer.json")
    for file in arguments.treebank:
        print(f"{file.name}: F1 {f1(encoder, file):.2%}")


if __name__ == "__main__":
    main()
