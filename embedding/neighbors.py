"""Pairs of near and far texts, with a teacher's similarity as their score.

    python -m embedding.neighbors --teacher runs/embedding/teacher --count 40000 \\
        --output runs/embedding/neighbors.jsonl

Two texts drawn at random hardly ever have to do with each other, so that a teacher's similarities
within a batch say little about fine grades. Here each of the texts that are drawn stands with its
nearest, third, tenth and fortieth neighbor by the teacher's vectors, and with one at random. The
score is 0 for what is no closer than texts at random, and 1 for the same (Augmented SBERT,
arXiv:2010.08240, with a bi-encoder as teacher). Rows have `sentence1`, `sentence2` and `score`, for
a task of kind `scored`.
"""

import argparse
from pathlib import Path

import numpy as np

from embedding.teacher import read_teacher
from pretraining.files import check_file, write_json_lines

RANKS = (1, 3, 10, 40)
SHORTEST, LONGEST = 5, 60  # characters of a text
ANCHORS = 500  # whose cosines with all texts are in memory at once


def scored_pairs(texts: list[str], vectors: np.ndarray, count: int, seed: int) -> list[dict]:
    """At most `count` pairs, five a text.

    Args:
        vectors: (texts, size), of length 1.

    Raises:
        ValueError: if there are too few texts of the right length.
    """
    chosen = [n for n, text in enumerate(texts) if SHORTEST <= len(text) <= LONGEST]
    if len(chosen) <= RANKS[-1] + 1:
        raise ValueError(
            f"{len(chosen)} texts of {SHORTEST} to {LONGEST} characters, but more than "
            f"{RANKS[-1] + 1} are needed."
        )
    vectors = np.asarray(vectors[chosen], dtype=np.float32)
    generator = np.random.default_rng(seed)
    anchors = generator.permutation(len(chosen))[: count // (len(RANKS) + 1)]
    strangers = generator.integers(len(chosen) - 1, size=len(anchors))
    strangers += strangers >= anchors  # anyone but oneself
    usual = np.median((vectors[anchors] * vectors[strangers]).sum(axis=1))
    rows = []
    for at in range(0, len(anchors), ANCHORS):
        block = anchors[at : at + ANCHORS]
        cosines = vectors[block] @ vectors.T
        cosines[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(-cosines, RANKS[-1], axis=1)[:, : RANKS[-1]]
        by_rank = np.take_along_axis(cosines, nearest, axis=1).argsort(axis=1)[:, ::-1]
        nearest = np.take_along_axis(nearest, by_rank, axis=1)[:, np.array(RANKS) - 1]
        partners = np.append(nearest, strangers[at : at + ANCHORS, None], axis=1)
        for own, anchor, others in zip(cosines, block, partners, strict=True):
            for other in others:
                score = float(np.clip((own[other] - usual) / (1 - usual), 0, 1))
                rows.append(
                    {
                        "sentence1": texts[chosen[anchor]],
                        "sentence2": texts[chosen[other]],
                        "score": round(score, 2),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="what embedding.distill wrote")
    parser.add_argument("--count", type=int, required=True, help="pairs to draw")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.count <= len(RANKS):
        parser.error(f"--count: at least {len(RANKS) + 1} pairs")
    try:
        check_file(args.output)
        texts, vectors = read_teacher(args.teacher)
        rows = scored_pairs(texts, vectors, args.count, args.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    write_json_lines(args.output, rows)
    print(f"{args.output}: {len(rows):,} pairs")


if __name__ == "__main__":
    main()
