"""Speed and quality of a model in torch, ONNX Runtime and OpenVINO, in turns in one run.

    python benchmarks/runtimes.py --model . --exported exported --held_out rows/valid-512

Prints the median time of one text of 32 tokens and the throughput of 16 texts of 128, for every
file that `serving.export` wrote and for torch in fp32 and bf16. With held-out rows also what each
makes of every nth row: of a masked language model the masked accuracy, of an embedding model
the cosine between its vectors and those of torch in fp32. OMP_NUM_THREADS sets the threads of all.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from common import interleaved
from data_collator_wwm import IGNORED
from pretraining.files import write_json
from pretraining.machine import machine
from serving.runtime import FILES, Runtime

LATENCY, THROUGHPUT = (1, 32), (16, 128)


def sides_of(model: Path, exported: Path) -> dict[str, Runtime]:
    """The runtimes by name, of those files that are there."""
    sides = {
        f"torch {name}": Runtime.open(model, "torch", dtype=dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    for (runtime, int8), file in FILES.items():
        if (exported / file).is_file():
            sides[f"{runtime} {'int8' if int8 else 'fp32'}"] = Runtime.open(exported, runtime, int8)
    return sides


def times(
    sides: dict[str, Runtime], shape: tuple[int, int], vocabulary: int, rounds: int
) -> dict[str, float]:
    """Median seconds of a batch of random ids."""
    ids = np.random.default_rng(0).integers(5, vocabulary, shape)
    mask = np.ones_like(ids)
    calls = {name: (lambda side=side: side.forward(ids, mask)) for name, side in sides.items()}
    measured = interleaved(calls, rounds)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def documents(folder: Path, every: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids with [MASK] and labels, each (tokens,), of the documents in every nth row of a set."""
    # Here, since without held-out rows nothing of the pretraining's packages is needed.
    from pretraining.data.rows import open_rows
    from pretraining.run.evaluation import EvaluationRows, evaluation_collator

    rows = open_rows(folder)
    features, collator = EvaluationRows(rows), evaluation_collator(rows)
    for index in range(0, len(features), every):
        batch = {name: value[0].numpy() for name, value in collator([features[index]]).items()}
        real = batch["attention_mask"] != 0
        begins = np.flatnonzero((batch["position_ids"] == 0) & real)
        for start, end in zip(begins, [*begins[1:], real.sum()], strict=True):
            yield batch["input_ids"][start:end], batch["labels"][start:end]


def masked_accuracy(side: Runtime, held_out: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of the masked tokens that are named right."""
    right = masked = 0
    for ids, labels in held_out:
        logits = side.forward(ids[None], np.ones_like(ids)[None])["logits"][0]
        places = labels != IGNORED
        right += int((logits[places].argmax(-1) == labels[places]).sum())
        masked += int(places.sum())
    return right / masked


def vectors(side: Runtime, held_out: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(documents, size), normalized."""
    found = [
        side.forward(ids[None], np.ones_like(ids)[None])["sentence_embedding"][0]
        for ids, _ in held_out
    ]
    return np.stack([vector / np.linalg.norm(vector) for vector in found])


def quality(
    sides: dict[str, Runtime], held_out: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[str, dict[str, float]]:
    """What is compared, and its value for each side."""
    if next(iter(sides.values())).folder.pooling is None:
        accuracies = {name: masked_accuracy(side, held_out) for name, side in sides.items()}
        return "masked accuracy, %", {name: 100 * share for name, share in accuracies.items()}
    reference = vectors(sides["torch fp32"], held_out)
    cosines = {
        name: float((vectors(side, held_out) * reference).sum(-1).mean())
        for name, side in sides.items()
    }
    return "cosine to torch fp32", cosines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("."), help="model folder, for torch")
    parser.add_argument("--exported", type=Path, required=True, help="what serving.export wrote")
    parser.add_argument("--held_out", type=Path, help="row set")
    parser.add_argument("--every", type=int, default=20, help="take every nth row of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/runtimes"))
    arguments = parser.parse_args()

    sides = sides_of(arguments.model, arguments.exported)
    vocabulary = sides["torch fp32"].folder.config["vocab_size"]
    latency = times(sides, LATENCY, vocabulary, 4 * arguments.rounds)
    batch = times(sides, THROUGHPUT, vocabulary, arguments.rounds)
    columns = {
        "one text of 32 tokens, ms": {name: 1000 * value for name, value in latency.items()},
        "16 × 128, tokens/s": {
            name: THROUGHPUT[0] * THROUGHPUT[1] / value for name, value in batch.items()
        },
    }
    if arguments.held_out:
        held_out = list(documents(arguments.held_out, arguments.every))
        title, values = quality(sides, held_out)
        columns[title] = values
    facts = machine(torch.device("cpu"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"\n| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name in sides:
        cells = [f"{values[name]:,.{_digits(title)}f}" for title, values in columns.items()]
        print(f"| {name} | {' | '.join(cells)} |")
    write_json(arguments.output / "runtimes.json", {"machine": facts, "columns": columns})


def _digits(column: str) -> int:
    return {"16 × 128, tokens/s": 0, "cosine to torch fp32": 4}.get(column, 1)


if __name__ == "__main__":
    main()
