"""A converted ModernBERT beside transformers' own code for it: the same weights, in turns.

    python benchmarks/modernbert_speed.py
    python benchmarks/modernbert_speed.py --lengths 8192 --rounds 1

The weights are random, in the shape of ModernBERT-base (22 layers × 768) unless it is another;
both encoders read the same padded batches in bf16. Tokens are real tokens: padding does not count.
Each round times both sides once, in turns; the ratio is the median over the rounds of the ratio
within a round. There are no figures if the states of the two differ by more than bf16 rounds.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass

import torch
from transformers import ModernBertConfig, ModernBertModel

from common import interleaved, median_ratio
from inputs import mixed_lengths, padded_batch
from modeling_chinese_modernbert import ChineseModernBertModel
from pretraining.machine import default_device, machine
from serving.modernbert_source import convert_config

WORKLOADS = {
    "512": ("8 × 512", [512] * 8),
    "mixed": ("16 × 32–512", mixed_lengths(16, 512)),
    "8192": ("1 × 8,192", [8192]),
}

# Mean difference over the states' mean size. bf16 rounds by 0.4 % at each step in between, and the
# two codes round at different ones.
PARITY = 0.05


@dataclass(frozen=True)
class Sides:
    """Both encoders with the same weights, in bf16."""

    theirs: ModernBertModel
    ours: ChineseModernBertModel


def build(layers: int, hidden: int, device: torch.device) -> Sides:
    """ModernBERT-base with other numbers of layers and dimensions, and random weights."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_attention_heads=hidden // 64,
        attn_implementation="sdpa",
    )
    theirs = ModernBertModel(config)
    ours = ChineseModernBertModel(convert_config(config)[0])
    ours.load_state_dict(theirs.state_dict())
    return Sides(*(model.to(device, torch.bfloat16).eval() for model in (theirs, ours)))


def check_parity(sides: Sides, device: torch.device) -> None:
    """Ends the run if the states differ by more than bf16 rounds.

    Raises:
        SystemExit: with the difference.
    """
    batch = padded_batch([300, 7, 131, 64], device)
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        theirs, ours = (
            model(**batch).last_hidden_state[real].float() for model in (sides.theirs, sides.ours)
        )
    difference = ((ours - theirs).abs().mean() / theirs.abs().mean()).item()
    if not difference <= PARITY:
        sys.exit(
            f"the states differ by {difference:.2g} of their size (rounding explains at most "
            f"{PARITY}), so no figures are given."
        )


def line(name: str, tokens: int, times: dict[str, list[float]]) -> str:
    """A row of the table."""
    theirs, ours = times["transformers"], times["ours"]
    rates = (tokens / statistics.median(side) for side in (theirs, ours))
    columns = (name, *(f"{rate:,.0f}" for rate in rates), f"{median_ratio(theirs, ours):.2f}")
    return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    arguments = parser.parse_args()
    device = default_device()
    sides = build(arguments.layers, arguments.hidden, device)
    check_parity(sides, device)
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(f"{arguments.layers} layers × {arguments.hidden}, bf16\n")
    print("| workload | transformers, tokens/s | converted, tokens/s | ratio |\n|---|---|---|---|")
    for name, lengths in map(WORKLOADS.get, arguments.lengths):
        batch = padded_batch(lengths, device)
        runs = {
            "transformers": lambda batch=batch: sides.theirs(**batch),
            "ours": lambda batch=batch: sides.ours(**batch),
        }
        with torch.inference_mode():
            times = interleaved(runs, arguments.rounds, device)
        print(line(name, sum(lengths), times), flush=True)


if __name__ == "__main__":
    main()
