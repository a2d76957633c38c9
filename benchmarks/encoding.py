"""Encoding speed beside another tokenizer, through transformers' own call.

    python benchmarks/encoding.py --corpus data/valid.jsonl.xz --peer vocab.txt

Both sides encode the same texts in every round, in turns; the figures are medians over the rounds,
the ratio is the median of the rounds' ratios. Then single lines of growing length.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pretraining.data.corpus import read_documents
from pretraining.tokenizer_report import open_peer

ROOT = Path(__file__).resolve().parent.parent


def seconds(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    start = time.perf_counter()
    tokenizer(texts)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--peer", required=True, help="BERT vocabulary (.txt), folder or Hub name")
    parser.add_argument("--characters", type=int, default=2_000_000, help="text for each round")
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
        seconds(tokenizer, texts)
    times = [(seconds(own, texts), seconds(peer, texts)) for _ in range(arguments.rounds)]
    for name, side in ((type(own).__name__, 0), (arguments.peer, 1)):
        median = statistics.median(each[side] for each in times)
        print(f"{name}: {size / median / 1e6:.2f} M characters/s")
    ratios = [theirs / ours for ours, theirs in times]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")

    line = "".join(texts)
    while len(line) < max(arguments.lines, default=0):
        line += line
    for length in arguments.lines:
        times = [
            [seconds(tokenizer, [line[:length]]) for tokenizer in (own, peer)]
            for _ in range(arguments.rounds)
        ]
        ours, theirs = (statistics.median(side) / length * 1e9 for side in zip(*times, strict=True))
        print(f"a line of {length:,}: {ours:.0f} ns a character, beside {theirs:.0f}")


if __name__ == "__main__":
    main()
