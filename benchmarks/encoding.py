"""Encoding speed beside another tokenizer, through transformers' own call.

    python benchmarks/encoding.py --corpus data/valid.jsonl.xz --peer vocab.txt

Both sides encode the same texts in every round, in turns; the figures are medians over the rounds,
and the ratio is the median of the ratios within a round. Then come single lines of growing length.
"""

import argparse
import functools
import statistics
import sys

from transformers import AutoTokenizer

from common import ROOT, interleaved, round_ratios
from pretraining.data.corpus import read_documents
from pretraining.tokenizer_report import open_peer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--peer", required=True, help="BERT vocabulary (.txt), folder or Hub name")
    parser.add_argument("--characters", type=int, default=2_000_000, help="size of the texts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lines", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()

    texts, size = [], 0
    for document in read_documents(arguments.corpus):
        texts.append(document.text)
        size += len(document.text)
        if size >= arguments.characters:
            break
    own = AutoTokenizer.from_pretrained(str(ROOT), trust_remote_code=True)
    peer = open_peer(arguments.peer)
    for tokenizer in (own, peer):
        tokenizer.model_max_length = sys.maxsize  # no warning about long texts

    def times(texts: list[str]) -> dict[str, list[float]]:
        sides = {
            "own": functools.partial(own, texts),
            "peer": functools.partial(peer, texts),
        }
        return interleaved(sides, arguments.rounds)

    taken = times(texts)
    for name, side in ((type(own).__name__, "own"), (arguments.peer, "peer")):
        print(f"{name}: {size / statistics.median(taken[side]) / 1e6:.2f} M characters/s")
    ratios = round_ratios(taken["peer"], taken["own"])
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")

    line = "".join(texts)
    while len(line) < max(arguments.lines, default=0):
        line += line
    for length in arguments.lines:
        ours, theirs = (
            statistics.median(side) / length * 1e9 for side in times([line[:length]]).values()
        )
        print(f"a line of {length:,}: {ours:.0f} ns per character, against {theirs:.0f}")


if __name__ == "__main__":
    main()
