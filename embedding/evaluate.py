"""Compares sentence vectors on public Chinese tasks, in one table.

    python -m embedding.evaluate --tasks TASKS --models bigrams bm25 . FOLDER FOLDER@128 \\
        --output results.json --speed

TASKS is a folder with the unpacked archives (`stsb/`, `simclue/`, `afqmc/`, `ocnli/`, `cmrc2018/`,
`drcd/`, `csl_benchmark/`). A model is a folder or a name on the Hub, with @N its vectors' first N
dimensions, or `bigrams` or `bm25`. A cross-encoder or late-interaction model reranks BM25's best 20
in the retrieval tasks. After each task the figures go to the output file; a model whose
figures are there already, with the same weights, is not measured again. --mteb names tasks of the
package `mteb`, which downloads their data.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

from embedding.architectures import architecture_of
from embedding.encoder import DTYPES, Encoder, Opening
from embedding.lexical import BM25, Bigrams, need_packages
from embedding.metrics import pair_metrics, ranks_of, retrieval_metrics
from embedding.mteb_tasks import run_mteb
from embedding.reranker import Reranker
from embedding.results import fingerprint, open_results, surroundings, table
from embedding.tasks import DEV, TASKS, Pairs, Ranking, Task, read_task
from pretraining.files import write_json

Scorer = Encoder | Reranker | Bigrams | BM25
LEXICAL = {"bigrams": Bigrams, "bm25": BM25}


class Contender:
    """A scorer by its name on the command line; a model is opened when it is needed first.

    Raises:
        ImportError, ValueError: if there cannot be one of that name.
    """

    def __init__(self, name: str, dtype: str | None):
        self.name = name
        self.lexical = LEXICAL[name]() if name in LEXICAL else None
        self.label = name if self.lexical or dtype is None else f"{name} ({dtype})"
        self.opening = None if self.lexical else Opening.of(name, dtype)

    @cached_property
    def scorer(self) -> Scorer:
        if self.lexical:
            return self.lexical
        architecture = architecture_of(self.opening.path)
        model = self.opening.open(architecture)
        return Encoder(model) if architecture == "bi_encoder" else Reranker(model)


def score(scorer: Scorer, task: Task) -> dict[str, float] | None:
    """The metrics of a task; None if the scorer says nothing about pairs (BM25)."""
    if isinstance(task, Pairs):
        if isinstance(scorer, BM25):
            return None
        return pair_metrics(scorer.similar(task.left, task.right), task.scores, task.binary)
    if isinstance(task, Ranking):
        return None if isinstance(scorer, BM25) else {"accuracy": _accuracy(scorer, task)}
    ranks = ranks_of(scorer.search(task.queries, task.documents), task.relevant)
    return retrieval_metrics(ranks)


def _accuracy(scorer: Encoder | Reranker | Bigrams, task: Ranking) -> float:
    """The share of queries whose right candidate scores above all others."""
    flat = [(q, c) for q, row in zip(task.queries, task.candidates, strict=True) for c in row]
    scores = iter(scorer.similar([q for q, _ in flat], [c for _, c in flat]))
    right = 0
    for row, best in zip(task.candidates, task.best, strict=True):
        own = [next(scores) for _ in row]
        right += all(own[best] > other for place, other in enumerate(own) if place != best)
    return right / len(task.queries)


def speed_of(contender: Contender, tasks: Path) -> dict[str, float]:
    """The figures of `embedding.speed`, from a process of its own.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    command = [sys.executable, "-m", "embedding.speed", "--tasks", str(tasks)]
    command += ["--model", contender.name]
    if contender.opening.dtype:
        command += ["--dtype", contender.opening.dtype]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr.strip()}")
    return json.loads(run.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=Path, required=True, help="folder of unpacked tasks")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the figures")
    tests = [name for name in TASKS if name not in DEV]
    parser.add_argument("--only", nargs="+", choices=TASKS, default=tests, metavar="TASK")
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of config.json")
    parser.add_argument("--speed", action="store_true", help="texts per second and megabytes, too")
    parser.add_argument("--mteb", nargs="+", default=[], metavar="TASK", help="tasks of mteb")
    return parser.parse_args()


def main() -> None:
    args = parse()
    try:
        if args.mteb:
            need_packages("mteb", install="'mteb>=2'")
        contenders = [Contender(name, args.dtype) for name in args.models]
        results = open_results(args.output)
        tasks = {name: read_task(name, args.tasks) for name in args.only}
        for contender in contenders:
            evaluate(contender, tasks, args, results)
            vars(contender).pop("scorer", None)  # one model in memory at a time
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        sys.exit(f"evaluate: {error}")
    print(table(results, [contender.label for contender in contenders]))


def evaluate(
    contender: Contender, tasks: dict[str, Task], args: argparse.Namespace, results: dict
) -> None:
    """Fills in what the results lack of this model, and saves after each task."""
    mark = fingerprint(contender.opening)
    known = results["models"].get(contender.label)
    if known is None or known["fingerprint"] != mark:
        known = {"fingerprint": mark, "tasks": {}}

    def keep(place: dict, key: str, value) -> None:
        place[key] = value
        # Another command may have written since.
        models = open_results(args.output)["models"]
        other = models.get(contender.label, {})
        if other.get("fingerprint") == mark:
            known["tasks"] = other["tasks"] | known["tasks"]
            if "speed" in other:
                known.setdefault("speed", other["speed"])
        results["models"] |= models | {contender.label: known}
        write_json(args.output, results)

    for name, task in tasks.items():
        if name not in known["tasks"]:
            start = time.perf_counter()
            keep(known["tasks"], name, score(contender.scorer, task))
            print(f"{contender.name} {name}: {time.perf_counter() - start:.0f} s", flush=True)
    if contender.opening is None:
        return
    for name in args.mteb:
        if name not in known["tasks"]:
            keep(known["tasks"], name, run_mteb(contender.scorer.model, name))
    here = surroundings()
    measured = here.items() <= known.get("speed", {}).items()
    if args.speed and not measured and isinstance(contender.scorer, Encoder):
        keep(known, "speed", speed_of(contender, args.tasks) | here)


if __name__ == "__main__":
    main()
