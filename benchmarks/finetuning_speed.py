"""Speed of fine-tuning against transformers' BERT of the same shape, by the same script.

    python benchmarks/finetuning_speed.py
    python benchmarks/finetuning_speed.py --layers 12 --hidden 768 --rows 64

Both models have a classifier, as many layers and dimensions, and feed-forward layers with as many
weights. Both train with `finetuning.training.fit`, which is the standard Trainer with batches
grouped by length, on the same rows of mixed lengths, an epoch each in turn. Prints examples and
real tokens per second, and the median ratio of neighboring turns.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
)

from common import ROOT, interleaved, median_ratio
from configuration_chinese_modernbert import ChineseModernBertConfig
from finetuning.models import Model
from finetuning.tasks import TASKS
from finetuning.training import Run, fit
from modeling_chinese_modernbert import ChineseModernBertForSequenceClassification
from pretraining.files import write_json
from pretraining.machine import machine

LENGTHS = (16, 512)  # tokens of the shortest and the longest row
VOCABULARY = 32_000


def build(layers: int, hidden: int) -> dict[str, torch.nn.Module]:
    """Both models, with random weights."""
    heads = hidden // 64
    shared = {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers}
    ours = ChineseModernBertConfig(
        **shared,
        num_attention_heads=heads,
        intermediate_size=hidden * 8 // 3 // 32 * 32,  # three matrices where BERT has two
        num_labels=2,
    )
    theirs = BertConfig(
        **shared,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=2,
        # Ours has none, and on a CPU torch's fused attention takes none.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return {
        "BERT": BertForSequenceClassification(theirs),
        "ours": ChineseModernBertForSequenceClassification(ours),
    }


def make_rows(count: int) -> list[dict]:
    """Rows of random ids, as many short ones as long ones on a logarithmic scale."""
    random = np.random.default_rng(0)
    shortest, longest = np.log(LENGTHS)
    lengths = np.exp(random.uniform(shortest, longest, count)).astype(int)
    return [
        {
            "input_ids": random.integers(100, VOCABULARY, length).tolist(),
            "attention_mask": [1] * length,
            "labels": int(random.integers(2)),
        }
        for length in lengths
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rows", type=int, default=256, help="in an epoch")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="both models")
    parser.add_argument("--output", type=Path, default=Path("runs/finetuning_speed"))
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    task = dataclasses.replace(TASKS["tnews"], epochs=1, batch_size=arguments.batch_size)
    run = Run(task, Model("", ""), 0, learning_rate=1e-5, compile=arguments.compile)
    rows = make_rows(arguments.rows)
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True))
    models = build(arguments.layers, arguments.hidden)
    times = interleaved(
        {
            name: (lambda model=model: fit(run, model, collator, rows, []))
            for name, model in models.items()
        },
        arguments.rounds,
    )
    facts = machine(torch.device("cpu"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{arguments.layers} layers × {arguments.hidden}, batches of {arguments.batch_size}, rows "
        f"of {LENGTHS[0]} to {LENGTHS[1]} tokens\n\n| | M parameters | examples/s | tokens/s |\n"
        "|---|--:|--:|--:|"
    )
    tokens = sum(len(row["input_ids"]) for row in rows)
    for name, model in models.items():
        seconds = statistics.median(times[name])
        print(
            f"| {name} | {model.num_parameters() / 1e6:.1f} | {len(rows) / seconds:,.1f} | "
            f"{tokens / seconds:,.0f} |"
        )
    print(f"\nours is {median_ratio(times['BERT'], times['ours']):.2f} times as fast")
    write_json(
        arguments.output / "finetuning_speed.json",
        {"machine": facts, "shape": vars(arguments) | {"output": None}, "seconds": times},
    )


if __name__ == "__main__":
    main()
