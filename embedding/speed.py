"""How fast a model encodes, and in how much memory; a process of its own for each model.

    python -m embedding.speed --tasks TASKS --model FOLDER

Prints one JSON object: sentences per second (STS-B), paragraphs per second (CMRC), milliseconds of
one sentence alone (median), megabytes of the model's files, and megabytes by which opening and
encoding raised the process's peak memory. Texts go through `SentenceTransformer.encode`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from embedding.encoder import DTYPES, Opening
from embedding.tasks import read_task
from pretraining.command import readable_errors
from pretraining.machine import peak_memory

SENTENCES, PARAGRAPHS, ALONE, ROUNDS = 512, 32, 50, 3


def per_second(model, texts: list[str]) -> float:
    """Texts per second in batches of 32, the best of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.encode(texts, batch_size=32)
        times.append(time.perf_counter() - start)
    return len(texts) / min(times)


def latency(model, texts: list[str]) -> float:
    """Milliseconds of one text alone, the median over the texts."""
    times = []
    for text in texts:
        start = time.perf_counter()
        model.encode(text)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def megabytes_of(folder: Path) -> float | None:
    """What the weights and the tokenizer take on disk; None for a model on the Hub."""
    if not folder.is_dir():
        return None
    # A checkout holds models in folders of its own, which are others.
    files = list(folder.glob("tokenizer*"))
    for part in (folder, *folder.glob("[0-9]_*")):
        # Many models bring their weights in both formats.
        files += list(part.glob("*.safetensors")) or list(part.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files) / 2**20


def measure(opening: Opening, tasks: Path) -> dict[str, float | int | None]:
    """Opens the model and measures it.

    Raises:
        OSError, ValueError: if the model or the texts cannot be read.
    """
    sentences = read_task("stsb", tasks).left[:SENTENCES]
    paragraphs = read_task("cmrc", tasks).documents[:PARAGRAPHS]
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    model = opening.open()
    model.encode(sentences[:32])  # warms up
    return {
        "sentences_per_second": per_second(model, sentences),
        "paragraphs_per_second": per_second(model, paragraphs),
        "latency_ms": latency(model, sentences[:ALONE]),
        "disk_mb": megabytes_of(Path(opening.path)),
        "memory_mb": (peak_memory(cpu) - before) / 2**20,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=Path, required=True, help="folder of unpacked tasks")
    parser.add_argument("--model", required=True, help="FOLDER or FOLDER@DIMENSIONS")
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of config.json")
    args = parser.parse_args()
    with readable_errors("speed"):
        figures = measure(Opening.of(args.model, args.dtype), args.tasks)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
