"""Hard negatives for pairs: texts that a model takes for close, and that do not mean the same.

    python -m embedding.mine --model FOLDER --pairs train_pair_postive_1w.json \\
        --columns query title --negatives 3 --output mined.jsonl --exclude TASKS

Candidates are the texts of the pairs and of --corpus. False negatives are filtered: what is not
clearly further from the anchor than its own positive (--relative_margin), what another pair says
means the same, over any number of steps, and, with --judge, what a CrossEncoder finds as close as
the positive. A row of the output has `anchor`, `positive` and `negatives`, closest first, for a run
file's task of kind `triplets`.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.util import mine_hard_negatives

from embedding.architectures import architecture_of
from embedding.data import load_task
from embedding.distill import read_sentences
from embedding.encoder import Opening
from embedding.held_out import HeldOut, normalized
from embedding.run_file import TaskSpec
from pretraining.command import readable_errors
from pretraining.files import check_file, write_json_lines

# Candidates asked for per negative wanted: some fall to the filter by meaning.
SPARE = 3
# Anchors whose cosines with all texts are in memory at once.
ANCHORS = 512


class Meanings:
    """Groups of texts that mean the same, from pairs, closed under symmetry and transitivity."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self._parent: dict[str, str] = {}
        for left, right in pairs:
            self._parent[self._root(normalized(left))] = self._root(normalized(right))

    def _root(self, key: str) -> str:
        while (parent := self._parent.setdefault(key, key)) != key:
            self._parent[key] = self._parent[parent]  # halves the path
            key = self._parent[key]
        return key

    def same(self, left: str, right: str) -> bool:
        """Whether the pairs say, directly or over others, that two texts mean the same."""
        return self._root(normalized(left)) == self._root(normalized(right))


def collect(mined: Dataset, meanings: Meanings, negatives: int) -> list[dict]:
    """The closest negatives of each pair that are not known to mean the same.

    Args:
        mined: (anchor, positive, negative), the negatives of a pair in order of closeness.

    Returns:
        Rows with exactly `negatives` texts under `negatives`; other pairs are left out.
    """
    kept: dict[tuple[str, str], list[str]] = {}
    for row in mined:
        found = kept.setdefault((row["anchor"], row["positive"]), [])
        if len(found) < negatives and not meanings.same(row["anchor"], row["negative"]):
            found.append(row["negative"])
    return [
        {"anchor": anchor, "positive": positive, "negatives": found}
        for (anchor, positive), found in kept.items()
        if len(found) == negatives
    ]


def open_judge(path: str) -> CrossEncoder:
    """The cross-encoder in a folder, or of a name on the Hub.

    Raises:
        OSError, ValueError: if it is none; as one, another model would judge at random.
    """
    opening = Opening.of(path)
    if architecture_of(path) != "cross_encoder":
        raise ValueError(
            f"{path} is no CrossEncoder: train one with architecture cross_encoder, or leave "
            "--judge out."
        )
    return opening.open("cross_encoder")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="whose neighbors are taken")
    parser.add_argument("--pairs", nargs="+", type=Path, required=True, help="JSONL files")
    parser.add_argument("--columns", nargs=2, required=True, metavar=("ANCHOR", "POSITIVE"))
    parser.add_argument("--corpus", nargs="+", type=Path, help="text files, one text a line")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file")
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument(
        "--relative_margin",
        type=float,
        default=0.05,
        help="a negative is at least this share of the positive's score below it",
    )
    parser.add_argument("--range_max", type=int, default=50, help="neighbors that are looked at")
    parser.add_argument("--judge", help="CrossEncoder that scores candidates in the model's place")
    parser.add_argument("--exclude", type=Path, help="folder of tasks whose texts are left out")
    args = parser.parse_args()
    if SPARE * args.negatives > args.range_max:
        parser.error(
            f"--negatives {args.negatives} needs --range_max {SPARE * args.negatives} or more"
        )
    return args


def main() -> None:
    args = parse()
    with readable_errors("mine"):
        check_file(args.output)
        judge = open_judge(args.judge) if args.judge else None
        held_out = HeldOut(args.exclude) if args.exclude else None
        spec = TaskSpec("pairs", "pairs", tuple(args.pairs), columns=tuple(args.columns))
        pairs = load_task(spec, seed=0, held_out=held_out).rows
        corpus = read_sentences(args.corpus) if args.corpus else []
        if held_out is not None:
            corpus = [text for text in corpus if not held_out.holds(text)]
        model = Opening.of(args.model).open()
    mined = mine_hard_negatives(
        pairs,
        model,
        # The library adds the positives; anchors are candidates, too.
        corpus=[*pairs["anchor"], *pairs["positive"], *corpus],
        cross_encoder=judge,
        num_negatives=SPARE * args.negatives,
        range_max=args.range_max,
        relative_margin=args.relative_margin,
        output_format="triplet",
        faiss_batch_size=ANCHORS,  # used without faiss, too
        verbose=False,
    )
    meanings = Meanings(zip(pairs["anchor"], pairs["positive"], strict=True))
    rows = collect(mined, meanings, args.negatives)
    write_json_lines(args.output, rows)
    print(
        f"{args.output}: {len(rows):,} of {len(pairs):,} pairs with {args.negatives} negatives each"
    )


if __name__ == "__main__":
    main()
