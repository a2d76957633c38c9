"""Search in many passages: how long an index takes, how fast it answers, and what it finds.

    python benchmarks/search.py --model FOLDER --documents everyday/*.jsonl.xz \\
        --tasks TASKS --index runs/benchmark-index

Indexes the paragraphs of CMRC 2018's dev set together with passages of the documents, 100,000 in
all; if the index is there, it is used. Prints the time of one query of each way (median and 95th
percentile, with the vector of the question), recall@10 of the graph against comparing with all
vectors, and how often each way finds the paragraph to which a question belongs.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common import CPU, seconds
from embedding.encoder import Opening
from embedding.metrics import retrieval_metrics
from embedding.passages import Passage, read_passages
from embedding.search import Searcher, distinct, index_passages
from embedding.search_index import WAYS
from embedding.tasks import Retrieval, read_task
from pretraining.machine import machine

TIMED = 300  # questions
TOP = 10


def passages_of(task: Retrieval, documents: list[str], count: int) -> Iterator[Passage]:
    """The paragraphs of the task, then distinct passages of the documents, `count` in all."""
    paragraphs = [
        Passage(" ".join(text.split()), "cmrc", number)
        for number, text in enumerate(task.documents)
    ]
    known = {passage.text for passage in paragraphs}
    yield from paragraphs
    others = read_passages(documents)
    left = count - len(paragraphs)
    while left > 0 and (chunk := list(itertools.islice(others, left))):
        new, _ = distinct(chunk, known)
        yield from new
        left -= len(new)


def rank(found: list[tuple[int, float]], wanted: int) -> float:
    """Place of a passage in a ranking, infinite if it is not there."""
    numbers = [number for number, _ in found]
    return numbers.index(wanted) + 1 if wanted in numbers else float("inf")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", nargs="+", required=True)
    parser.add_argument("--tasks", type=Path, required=True, help="folder with cmrc2018/")
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100_000)
    return parser.parse_args()


def main() -> None:
    args = parse()
    task = read_task("cmrc", args.tasks)
    opening = Opening.of(args.model)
    if not (args.index / "index.json").exists():
        found = passages_of(task, args.documents, args.count)
        built = seconds(lambda: index_passages(args.index, found, opening))
        print(f"built in {built:,.0f} s")
    searcher = Searcher(args.index, args.model)
    index = searcher.index
    if index.passage(0).file != "cmrc":
        sys.exit(f"{args.index} holds other passages: remove it, or name another index.")
    size = sum(file.stat().st_size for file in args.index.rglob("*") if file.is_file())
    print(f"{machine(CPU)}\n{index.note.passages:,} passages, {size / 2**20:,.0f} MB on disk")

    vectors = searcher.model.encode_query(
        task.queries, normalize_embeddings=True, show_progress_bar=False
    )
    overlap = []
    for vector in vectors[:: max(1, len(vectors) // TIMED)]:
        graph, exact = (
            {number for number, _ in index.by_vector(vector, TOP, exact=exact)}
            for exact in (False, True)
        )
        overlap.append(len(graph & exact) / TOP)
    print(f"recall@{TOP} of the graph: {statistics.mean(overlap):.4f} ({len(overlap)} questions)\n")

    print("| way | median, ms | 95th percentile, ms | MRR@10 | nDCG@10 | recall@10 |")
    print("|---|--:|--:|--:|--:|--:|")
    searcher.search(task.queries[0])  # warms up
    for way in WAYS:
        times, ranks = [], []
        for question in task.queries[:TIMED]:
            start = time.perf_counter()
            searcher.search(question, TOP, way)
            times.append(1_000 * (time.perf_counter() - start))
        for question, vector, wanted in zip(task.queries, vectors, task.relevant, strict=True):
            ranks.append(rank(index.ranking(question, vector, TOP, way), wanted))
        metrics = retrieval_metrics(np.array(ranks))
        figures = [f"{metrics[name]:.3f}" for name in ("mrr@10", "ndcg@10", "recall@10")]
        median, slow = statistics.median(times), float(np.percentile(times, 95))
        print(f"| {way} | {median:.1f} | {slow:.1f} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
