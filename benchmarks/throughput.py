"""Tokens per second of Chinese ModernBERT beside its peers, interleaved in one run.

    python benchmarks/throughput.py --layers 6 --compile --output runs/throughput
    python benchmarks/throughput.py --layers 28 --backends varlen_attention sdpa --output FOLDER

The peers are transformers' ModernBERT of the same shape and a BERT of the same width and depth,
both on `sdpa`, both fed padded batches as transformers feeds them. Tokens are real tokens: padding
does not count. Each round times every side once, in turn, so that a machine that slows down slows
all of them; what is compared is the median over the rounds of the ratio within a round.

Beside each figure stands its share of the machine's rate of matrix products, measured in the same
run: the multiplications and additions that the real tokens need (projections, and attention over
the keys that are in sight), over what `torch.mm` does in that time at the model's own shapes.

No figure is printed for a model whose states differ from the eager reference's.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.run.flops import encoder_flops, matrix_product, synchronized, training_flops

OURS, MODERNBERT, BERT = "Chinese ModernBERT", "ModernBERT", "BERT"

# Mean difference of states of size one from the eager reference: fp32 adds up in another order;
# bf16 rounds to 0.4 % at each of the steps between.
PARITY = {torch.float32: 1e-4, torch.bfloat16: 0.03}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# --- models and input ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The shape all sides share."""

    layers: int
    hidden: int = 1024
    heads: int = 16
    intermediate: int = 2624
    vocab: int = 32_000
    context: int = 32_768

    def config(self) -> ChineseModernBertConfig:
        return ChineseModernBertConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
        )


def build(name: str, shape: Shape, backend: str | None) -> torch.nn.Module:
    """A masked-language model with random weights, in eval mode."""
    common = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if name == MODERNBERT:
        config = ModernBertConfig(
            intermediate_size=shape.intermediate,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
            **common,
        )
        return ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    if name == BERT:
        config = BertConfig(intermediate_size=4 * shape.hidden, **common)
        return BertForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    model = ChineseModernBertForMaskedLM._from_config(shape.config(), attn_implementation=backend)
    return model.eval()


def encoder(model: torch.nn.Module) -> torch.nn.Module:
    return model.bert if isinstance(model, BertForMaskedLM) else model.model


def padded_batch(lengths: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """One document a row, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 32_000, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = ids.masked_fill(~mask, 0)
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def packed_batch(lengths: list[int], row: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The same documents end to end in rows, first fit, with positions that restart."""
    padded = padded_batch(lengths, torch.device("cpu"))["input_ids"]
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda d: -lengths[d]):
        for held in rows:
            if sum(lengths[d] for d in held) + lengths[document] <= row:
                held.append(document)
                break
        else:
            rows.append([document])
    ids = torch.zeros(len(rows), row, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, held in enumerate(rows):
        start = 0
        for document in held:
            end = start + lengths[document]
            ids[number, start:end] = padded[document, : lengths[document]]
            positions[number, start:end] = torch.arange(lengths[document])
            mask[number, start:end] = 1
            start = end
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: value.to(device) for name, value in batch.items()}


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels at every fourth real token, a mask rate between the curriculum's ends."""
    ids = batch["input_ids"]
    chosen = (torch.arange(ids.shape[1], device=ids.device) % 4 == 1) & (ids != 0)
    return {**batch, "labels": ids.masked_fill(~chosen, -100)}


def mixed_lengths(count: int, longest: int) -> list[int]:
    """Lengths from 32 to the longest, all equally likely; the longest is among them."""
    generator = torch.Generator().manual_seed(1)
    return [*torch.randint(32, longest + 1, (count - 1,), generator=generator).tolist(), longest]


# --- timing -------------------------------------------------------------------------------------


def interleaved(
    sides: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = synchronized(device)
            run()
            elapsed = synchronized(device) - start
            if number:
                seconds[name].append(elapsed)
    return seconds


def check_parity(
    shape: Shape, backend: str | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Ends the run if our model's states are not the eager reference's.

    Raises:
        SystemExit: with the difference.
    """
    states = {}
    batch = padded_batch([300, 7, 131, 64], device)
    for name in ("eager", backend):
        model = encoder(build(OURS, shape, name)).to(device, dtype)
        with torch.inference_mode():
            states[name] = model(**batch).last_hidden_state.float()
        del model
    difference = (states["eager"] - states[backend]).abs().mean().item()
    if not difference <= PARITY[dtype]:
        sys.exit(
            f"{backend or 'the default backend'} in {dtype} differs from eager by {difference:.2g} "
            f"on average (at most {PARITY[dtype]:.2g} is rounding): no figure is worth printing."
        )


@dataclass
class Result:
    """One line of the table."""

    workload: str
    dtype: str
    side: str
    tokens_per_second: float
    against_modernbert: float | None
    share_of_matrix_rate: float | None

    def line(self) -> str:
        ratio = "" if self.against_modernbert is None else f"{self.against_modernbert:.2f}"
        share = "" if self.share_of_matrix_rate is None else f"{self.share_of_matrix_rate:.0%}"
        return (
            f"| {self.workload} | {self.dtype} | {self.side} | {self.tokens_per_second:,.0f} "
            f"| {ratio} | {share} |"
        )


HEADER = (
    "| workload | type | side | real tokens/s | ratio to ModernBERT | share of matrix products |\n"
    "|---|---|---|---|---|---|"
)


def results_of(
    workload: str,
    dtype: str,
    seconds: dict[str, list[float]],
    tokens: int,
    flops: float,
    product_flops: float,
) -> list[Result]:
    """One line a side; the share of matrix products is given for our own sides."""
    products = seconds.pop("matrix products")
    results = []
    for side, times in seconds.items():
        ratio = None
        if side != MODERNBERT and MODERNBERT in seconds:
            pairs = zip(seconds[MODERNBERT], times, strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        share = None
        if side.startswith(OURS):
            pairs = zip(products, times, strict=True)
            share = statistics.median(
                (flops / own) / (product_flops / product) for product, own in pairs
            )
        results.append(
            Result(workload, dtype, side, tokens / statistics.median(times), ratio, share)
        )
    return results


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a model, its attention backend, and whether it is compiled."""

    name: str
    backend: str | None = None
    compiled: bool = False

    def build(self, shape: Shape) -> torch.nn.Module:
        return build(self.name, shape, self.backend)

    def ready(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.compiled:
            model.compile(dynamic=True)  # ours: the pieces; theirs: the whole
        return model


def sides_of(arguments) -> dict[str, Side]:
    """Every side, by its label."""
    sides = {f"{OURS} ({backend})": Side(OURS, backend) for backend in arguments.backends}
    if not arguments.no_peers:
        sides |= {MODERNBERT: Side(MODERNBERT), BERT: Side(BERT)}
    if arguments.compile:
        sides |= {
            label.replace(")", ", compiled)") if ")" in label else f"{label} (compiled)": Side(
                side.name, side.backend, compiled=True
            )
            for label, side in sides.items()
            if side.name != BERT
        }
    return sides


def inference(arguments, shape: Shape, device: torch.device) -> list[Result]:
    """Forward of the bare encoder: one length, mixed lengths, a long document."""
    workloads = {
        "inference, 8 × 512": [512] * 8 * arguments.scale,
        "inference, 16 × 32–512": mixed_lengths(16 * arguments.scale, 512),
        "inference, 1 × 8,192": [8192] * arguments.scale,
    }
    if arguments.tiny:
        workloads = {"inference, 2 × 40": [40, 40], "inference, 2 × 32–64": [32, 64]}
    results = []
    for dtype_name in arguments.dtypes:
        dtype = DTYPES[dtype_name]
        for backend in arguments.backends:
            check_parity(shape, backend, dtype, device)
        models = {
            label: side.ready(encoder(side.build(shape)).to(device, dtype))
            for label, side in sides_of(arguments).items()
        }
        product, product_flops = matrix_product(shape.config(), dtype, device)
        for workload, lengths in workloads.items():
            batch = padded_batch(lengths, device)
            sides = {label: functools.partial(model, **batch) for label, model in models.items()}
            with torch.inference_mode():
                seconds = interleaved(
                    sides | {"matrix products": product}, arguments.rounds, device
                )
            flops = encoder_flops(shape.config(), lengths)
            results += report(
                results_of(workload, dtype_name, seconds, sum(lengths), flops, product_flops)
            )
    return results


def training(arguments, shape: Shape, device: torch.device) -> list[Result]:
    """Forward, backward and optimizer step: our packed rows against the peers' padded batch."""
    row, count = (64, 4) if arguments.tiny else (1024, 8 * arguments.scale)
    lengths = mixed_lengths(count, row)
    packed = with_labels(packed_batch(lengths, row, device))
    padded = with_labels(padded_batch(lengths, device))
    results = []
    for dtype_name in arguments.dtypes:
        sides = {}
        for label, side in sides_of(arguments).items():
            model = side.build(shape).to(device).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            batch, run = packed if side.name == OURS else padded, side.ready(model)

            def step(run=run, optimizer=optimizer, batch=batch, dtype=DTYPES[dtype_name]):
                bf16 = dtype == torch.bfloat16
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    run(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            sides[label] = step
        product, product_flops = matrix_product(shape.config(), DTYPES[dtype_name], device)
        seconds = interleaved(sides | {"matrix products": product}, arguments.rounds, device)
        masked = int((packed["labels"] != -100).sum())
        flops = training_flops(shape.config(), lengths, masked)
        workload = f"training, {count} × 32–{row}"
        results += report(
            results_of(workload, dtype_name, seconds, sum(lengths), flops, product_flops)
        )
    return results


def report(results: list[Result]) -> list[Result]:
    for result in results:
        print(result.line(), flush=True)
    return results


# --- memory and cost against length -------------------------------------------------------------


def peak_memory(arguments, shape: Shape) -> dict[str, float]:
    """MiB that a forward over one long document adds to each side, each in its own process."""
    if not (torch.cuda.is_available() or Path("/proc/self/clear_refs").exists()):
        print("\nNo peak memory: it is read from /proc, which this system does not have.")
        return {}
    length = 128 if arguments.tiny else 8192
    print(f"\n| peak memory, 1 × {length:,}, bf16 | MiB |\n|---|---|")
    peaks = {}
    for label, side in sides_of(arguments).items():
        if side.compiled:
            continue  # the compiler's own memory would be measured
        command = [
            *(sys.executable, __file__, "--layers", str(shape.layers)),
            *("--measure_memory", side.name, str(length), "--backends", str(side.backend)),
            *(["--tiny"] if arguments.tiny else []),
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[label] = float(output.split()[-1])
        print(f"| {label} | {peaks[label]:,.0f} |", flush=True)
    return peaks


def measure_memory(name: str, length: int, shape: Shape, backend: str, device) -> float:
    """MiB that one forward adds to this process, or to the card."""
    model = encoder(build(name, shape, backend if name == OURS else None)).to(
        device, torch.bfloat16
    )
    batch = padded_batch([length], device)
    with torch.inference_mode():
        model(**padded_batch([16], device))  # loads what the first call loads
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(**batch)
            return (torch.cuda.max_memory_allocated(device) - before) / 2**20
        before = resident_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building the model
        model(**batch)
        return resident_memory("VmHWM") - before


def resident_memory(entry: str) -> float:
    """MiB of this process: VmRSS, what it holds now; VmHWM, the most it has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(entry)).split()[1]) / 2**10


def cost_against_length(arguments, shape: Shape, device: torch.device, picture: Path) -> dict:
    """Microseconds per token in bf16 from 512 to 32,768 tokens, as a table and a picture."""
    lengths = [64, 128] if arguments.tiny else [512, 1024, 2048, 4096, 8192, 16_384, 32_768]
    # The peers' dense masks and scores outgrow memory and patience.
    longest = {MODERNBERT: 8192, BERT: 8192}
    costs: dict[str, dict[int, float]] = {}
    models = {
        label: (side.name, side.ready(encoder(side.build(shape)).to(device, torch.bfloat16)))
        for label, side in sides_of(arguments).items()
    }
    for length in lengths:
        batch = padded_batch([length], device)
        sides = {
            label: functools.partial(model, **batch)
            for label, (name, model) in models.items()
            if length <= longest.get(name, length)
        }
        with torch.inference_mode():
            seconds = interleaved(sides, arguments.rounds, device)
        for label, times in seconds.items():
            costs.setdefault(label, {})[length] = statistics.median(times) / length * 1e6
    print("\n| microseconds per token | " + " | ".join(f"{n:,}" for n in lengths) + " |")
    print("|---|" + "---|" * len(lengths))
    for label, cost in costs.items():
        cells = (f"{cost[n]:,.1f}" if n in cost else "" for n in lengths)
        print(f"| {label} | " + " | ".join(cells) + " |")
    plot(costs, shape, picture)
    return costs


def plot(costs: dict[str, dict[int, float]], shape: Shape, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5))
    for label, cost in costs.items():
        axis.plot(list(cost), list(cost.values()), "o-", label=label)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens of the document")
    axis.set_ylabel("microseconds per token")
    axis.set_title(f"{shape.layers} layers × {shape.hidden}, bf16, inference")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


# --- the run ------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "date": date.today().isoformat(),
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6, help="depth of every side (28: the paper)")
    parser.add_argument("--backends", nargs="+", help="ours to measure; left out: the default one")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="times larger batches, for a GPU")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["inference", "training", "memory", "length"],
        default=["inference", "training", "memory", "length"],
    )
    parser.add_argument("--compile", action="store_true", help="add compiled sides")
    parser.add_argument("--no_peers", action="store_true", help="leave the peers out")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, to try the script")
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--measure_memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(arguments.layers)
    if arguments.tiny:
        shape = Shape(arguments.layers, hidden=64, heads=2, intermediate=96, context=512)
    arguments.backends = [
        None if name in (None, "None") else name for name in arguments.backends or [None]
    ]
    if arguments.measure_memory:
        name, length = arguments.measure_memory
        print(measure_memory(name, int(length), shape, arguments.backends[0], device))
        return
    if None in arguments.backends:  # named, so that the table says what ran
        model = encoder(build(OURS, shape, None)).to(device, torch.bfloat16)
        arguments.backends = [model.attention_backend()[0]]
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = machine(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"{shape.layers} layers × {shape.hidden}, {shape.heads} heads\n\n{HEADER}")
    told: dict[str, object] = {"machine": facts, "shape": vars(shape)}
    results: list[Result] = []
    if "inference" in arguments.parts:
        results += inference(arguments, shape, device)
    if "training" in arguments.parts:
        results += training(arguments, shape, device)
    told["results"] = [vars(result) for result in results]
    if "memory" in arguments.parts:
        told["peak_memory_mib"] = peak_memory(arguments, shape)
    if "length" in arguments.parts:
        told["microseconds_per_token"] = cost_against_length(
            arguments, shape, device, arguments.output / "length.png"
        )
    temporary = arguments.output / ".throughput.json"
    temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, arguments.output / "throughput.json")


if __name__ == "__main__":
    main()
