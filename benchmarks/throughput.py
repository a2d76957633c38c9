"""Speed and memory of Chinese ModernBERT beside its peers, interleaved in one run.

    python benchmarks/throughput.py --layers 6 --compile --output runs/throughput
    python benchmarks/throughput.py --layers 28 --backends varlen_attention sdpa --output FOLDER

The peers are transformers' ModernBERT of the same shape and a BERT of the same width and depth,
both on `sdpa`, both fed padded batches as transformers feeds them. Tokens are real tokens: padding
does not count. Each round times every side once, in turns, so that a machine that slows down slows
all of them; what is compared is the median over the rounds of the ratio within a round.

The last column is a share of the machine's rate of matrix products, measured in the same run: the
multiplications and additions that the real tokens need (projections, and attention over the keys
that a token may attend to), over what `torch.mm` does in that time at the model's own shapes.

Nothing is measured of a model whose states differ from the eager reference.
"""

import argparse
import dataclasses
import gc
from pathlib import Path

import torch

from common import DTYPES
from inputs import mixed_lengths
from length import cost_against_length, draw
from memory import peak_memory
from pretraining.files import write_json
from pretraining.machine import default_device, machine
from sides import OURS, Comparison, Shape, build, encoder, sides_of
from speed import HEADER, check_parity, inference, training

PARTS = ["inference", "training", "memory", "length"]


@dataclasses.dataclass(frozen=True)
class Workloads:
    """What the parts measure; lengths are in tokens."""

    inference: dict[str, list[int]]
    training_count: int
    training_row: int
    memory: int
    lengths: list[int]


def workloads_of(scale: int, tiny: bool) -> Workloads:
    """The workloads, with `scale` times as many documents in inference.

    Not in training, whose states for the backward pass fill a GPU of 80 GB at 28 layers.
    """
    if tiny:
        return Workloads(
            inference={"inference, 2 × 40": [40, 40], "inference, 2 × 32–64": [32, 64]},
            training_count=4,
            training_row=64,
            memory=128,
            lengths=[64, 128],
        )
    return Workloads(
        inference={
            f"inference, {8 * scale} × 512": [512] * 8 * scale,
            f"inference, {16 * scale} × 32–512": mixed_lengths(16 * scale, 512),
            f"inference, {scale} × 8,192": [8192] * scale,
        },
        training_count=8,
        training_row=1024,
        memory=8192,
        lengths=[512, 1024, 2048, 4096, 8192, 16_384, 32_768],
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6, help="depth of every side (28: the paper)")
    parser.add_argument(
        "--backends", nargs="+", help="attention backends of ours; left out: the default one"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scale", type=int, default=1, help="times as many documents in inference, for a GPU"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--compile", action="store_true", help="add compiled sides")
    parser.add_argument("--no_peers", action="store_true", help="leave the peers out")
    parser.add_argument(
        "--no_compiled_peer",
        action="store_true",
        help="leave out the compiled ModernBERT, whose one large graph takes minutes at 28 layers",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a tiny shape, to try the script; on a CPU it compiles without generating code",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = default_device()
    shape = Shape(arguments.layers)
    if arguments.tiny:
        shape = Shape(arguments.layers, hidden=64, heads=2, intermediate=96, context=512)
    backends = arguments.backends
    if backends is None:  # by its name, so that the table says what ran
        model = encoder(build(OURS, shape, None)).to(device, torch.bfloat16)
        backends = [model.attention_backend()[0]]
    compiler = None
    if arguments.compile:
        # Generating and compiling C++ for a CPU takes minutes.
        compiler = "eager" if arguments.tiny and device.type == "cpu" else "inductor"
    compiled_peer = not arguments.no_compiled_peer
    sides = sides_of(backends, not arguments.no_peers, compiler, compiled_peer)
    comparison = Comparison(shape, sides, device, arguments.rounds)
    workloads = workloads_of(arguments.scale, arguments.tiny)
    for side in sides.values():
        if side.name == OURS and side.compiler is None:
            for name in arguments.dtypes:
                check_parity(shape, side.backend, DTYPES[name], device)

    facts = machine(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"{shape.layers} layers × {shape.hidden}, {shape.heads} heads\n\n{HEADER}")
    results: list[dict] = []
    told: dict[str, object] = {"machine": facts, "shape": vars(shape), "results": results}

    def end_part() -> None:
        """Writes what is known, should the next part be stopped, and frees what is left behind."""
        write_json(arguments.output / "throughput.json", told)
        gc.collect()  # compiled layers refer to themselves

    if "inference" in arguments.parts:
        results += map(vars, inference(comparison, workloads.inference, arguments.dtypes))
        end_part()
    if "training" in arguments.parts:
        count, row = workloads.training_count, workloads.training_row
        results += map(vars, training(comparison, count, row, arguments.dtypes))
        end_part()
    if "memory" in arguments.parts:
        told["peak_memory_mib"] = peak_memory(comparison, workloads.memory)
        end_part()
    if "length" in arguments.parts:
        costs = cost_against_length(comparison, workloads.lengths)
        told["microseconds_per_token"] = costs
        end_part()
        draw(costs, shape, arguments.output / "length.png")


if __name__ == "__main__":
    main()
