"""Labels of tokens against scores of spans on CLUENER2020; see README.md here.

    python -m experiments.entity_spans.compare --model . --data TASKS --output OUT --compile

TASKS holds `cluener/`. A run that is in OUT is not run again.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, set_seed

from experiments.entity_spans.span_head import SpanCollator, SpanTagger, decode, features
from finetuning.heads import HEADS
from finetuning.models import Model
from finetuning.splits import load, subset
from finetuning.tasks import TASKS
from finetuning.training import Progress, Run, fit, outputs, train
from pretraining.files import read_json, write_json
from pretraining.machine import default_device

LIMITS = {"train_examples": 4_000, "epochs": 6}  # those of experiments/clue/run.yaml
RATES = (1e-4, 3e-4, 6e-4)
SEEDS = (1, 2, 3)


def train_spans(run: Run, splits: dict) -> dict:
    """What `finetuning.training.train` does, with the head for spans."""
    began = time.perf_counter()
    task, score = run.task, HEADS[run.task.head].score
    set_seed(run.seed)
    options = {"trust_remote_code": True}
    encoder = AutoModel.from_pretrained(run.model.folder, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(run.model.folder, **options)
    model = SpanTagger(encoder, len(task.labels)).to(default_device())
    collator = SpanCollator(tokenizer, len(task.labels))
    inputs = {
        name: features(splits[name].examples, tokenizer, task.labels, task.borders)
        for name in ("train", "dev")
    }

    def score_dev(model) -> tuple[dict, list]:
        rows, decoding, _ = inputs["dev"]
        logits = [row[0] for row in outputs(model, rows, collator, ("logits",))]
        found = decode(logits, decoding)
        return score(splits["dev"].examples, found), found

    progress = Progress(score_dev, task.metric, task.patience, lambda text: None)
    fit(run, model, collator, inputs["train"][0], [progress])
    return {
        "scores": {"dev": progress.history[progress.best]},
        "best_epoch": progress.best + 1,
        "inexact": {name: dict(counts) for name, (_, _, counts) in inputs.items()},
        "seconds": round(time.perf_counter() - began, 1),
    }


WAYS = {"tokens": train, "spans": train_spans}


def measured(way: str, run: Run, splits: dict, folder: Path) -> float:
    """Dev F1 of a run, from the output folder if it is there."""
    file = folder / f"{way}-{run.learning_rate:g}-{run.seed}.json"
    names = ("train_examples", "max_length", "batch_size", "epochs", "patience", "borders")
    settings = {"model_files": run.model.fingerprint()}
    settings |= {name: getattr(run.task, name) for name in names}
    settings["compiled"] = run.compile
    if not file.exists():
        result = WAYS[way](run, splits)
        result.pop("predictions", None)
        write_json(file, {"settings": settings, **result})
    result = read_json(file)
    if result["settings"] != settings:
        raise SystemExit(f"{file} is of another model or other settings; remove it.")
    f1 = result["scores"]["dev"][run.task.metric]
    print(
        f"{file.stem}: {f1:.2%}, epoch {result['best_epoch']}, {result['seconds']:.0f} s",
        flush=True,
    )
    return f1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compile", action="store_true", help="compile the encoder of both")
    args = parser.parse_args()
    if Model(args.model, "").is_random:
        parser.error("--model: a folder with weights, since both heads begin with them")
    task, splits = load(replace(TASKS["cluener"], **LIMITS), args.data)
    splits["train"] = subset(splits["train"], task.train_examples)
    rows = []
    for way in WAYS:
        first = Run(task, Model(args.model, "model"), SEEDS[0], RATES[0], args.compile)
        by_rate = {
            rate: measured(way, replace(first, learning_rate=rate), splits, args.output)
            for rate in RATES
        }
        best = max(by_rate, key=by_rate.get)
        scores = [
            measured(way, replace(first, learning_rate=best, seed=seed), splits, args.output)
            for seed in SEEDS
        ]
        cells = " | ".join(f"{score:.2%}" for score in scores)
        rows.append(f"| {way} | {best:g} | {cells} | {statistics.mean(scores):.2%} |")
    print("\n| head | rate | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean |")
    print("|---|--:|" + "--:|" * (len(SEEDS) + 1))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
