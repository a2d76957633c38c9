"""Near and far texts of a teacher's folder, scored by a CrossEncoder, to train vectors on.

    python -m embedding.judge --texts runs/embedding/teacher --judge runs/embedding/cross_encoder \\
        --count 100000 --output runs/embedding/judged.jsonl

A model that reads both texts at once learns more of a small set of labeled pairs than vectors do.
Vectors then learn its scores of many pairs more (Augmented SBERT, arXiv:2010.08240): each text of
the folder with its neighbors, as kind `neighbors` has them. Rows are `sentence1`, `sentence2` and
`score`, 0 to 1, for a run file's task of kind `scored`.
"""

import argparse
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder

from embedding.encoder import Opening
from embedding.neighbors import scored_pairs
from embedding.teacher import read_teacher
from pretraining.files import check_file, write_json_lines


def judged(judge: CrossEncoder, pairs: list[tuple[str, str]]) -> np.ndarray:
    """(pairs,): how alike two texts are, 0 to 1, the mean over both orders."""
    there = judge.predict(pairs, show_progress_bar=True)
    back = judge.predict([pair[::-1] for pair in pairs], show_progress_bar=True)
    return (there + back) / 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="folder of embedding.distill")
    parser.add_argument("--judge", required=True, help="CrossEncoder with one score")
    parser.add_argument("--count", type=int, help="pairs (five for each text)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSONL file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    try:
        check_file(args.output)
        texts, vectors = read_teacher(args.texts)
        pairs = [pair[:2] for pair in scored_pairs(texts, vectors, args.count, args.seed)]
        judge = Opening.of(args.judge).open("cross_encoder")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    scores = judged(judge, pairs)
    rows = [
        {"sentence1": left, "sentence2": right, "score": round(float(score), 4)}
        for (left, right), score in zip(pairs, scores, strict=True)
    ]
    write_json_lines(args.output, rows)
    print(f"{args.output}: {len(rows):,} pairs, mean score {scores.mean():.2f}")


if __name__ == "__main__":
    main()
