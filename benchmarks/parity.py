"""Whether attention backends agree with the eager reference, forward and backward.

    python benchmarks/parity.py --backends varlen_attention sdpa --output runs/gpu

The reference is eager attention in fp32. A backend in fp32 may differ from it by rounding, since it
adds up in another order. A backend in bf16 is compared with eager in bf16: both round alike, so it
may be at most 1.5 times as far from the reference. Documents of a packed row must not attend to
each other: changing one may not change a bit of another.
"""

import argparse
import sys
from pathlib import Path

import torch

from common import DTYPES
from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertModel
from pretraining.files import write_json
from pretraining.machine import default_device

# Relative to the largest state or gradient.
FP32_TOLERANCE = 1e-5
BF16_FACTOR = 1.5

# The window is 64 to each side, blocks are 128.
LENGTHS = {
    "mixed": [50, 200, 131, 1, 7],
    "borders of window and block": [63, 64, 65, 66, 127, 128, 129, 130, 193],
    "one length": [150, 150, 150],
    "one token": [1],
    "long": [8192],
}


def packed_row(lengths: list[int], device: torch.device, seed: int = 0) -> dict[str, torch.Tensor]:
    """All documents in one row, with positions that restart."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids.to(device), "position_ids": positions.to(device)}


def padded_rows(lengths: list[int], device: torch.device, side: str) -> dict[str, torch.Tensor]:
    """The same documents, one per row."""
    row = packed_row(lengths, torch.device("cpu"))["input_ids"][0]
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, document in enumerate(row.split(lengths)):
        start = width - len(document) if side == "left" else 0
        ids[number, start : start + len(document)] = document
        mask[number, start : start + len(document)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def build(backend: str, dtype: torch.dtype, device: torch.device) -> ChineseModernBertModel:
    """Six layers, the same weights for every backend, large enough that a wrong mask shows."""
    torch.manual_seed(0)
    config = ChineseModernBertConfig(
        vocab_size=50,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    model = ChineseModernBertModel._from_config(config, attn_implementation=backend)
    return model.to(device, dtype).eval()


def states_and_gradients(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the real tokens, and all parameters' gradients in one vector; both in fp32."""
    model.zero_grad()
    states = model(**batch).last_hidden_state
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    states = states[real].float()
    weights = torch.linspace(-1, 1, states.numel(), device=states.device).view_as(states)
    (states * weights).mean().backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return states.detach(), torch.cat(gradients)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference, relative to that of `other`."""
    return ((one - other).pow(2).mean().sqrt() / other.pow(2).mean().sqrt()).item()


def check(backend: str, dtype: torch.dtype, device: torch.device, longest: int) -> list[dict]:
    """One entry a form of input: differences of states and gradients, and whether they will do."""
    reference = build("eager", torch.float32, device)
    yardstick = build("eager", dtype, device)
    model = build(backend, dtype, device)
    entries = []
    for name, lengths in LENGTHS.items():
        lengths = [min(length, longest) for length in lengths]
        for form, batch in (
            ("packed", packed_row(lengths, device)),
            ("padded left", padded_rows(lengths, device, "left")),
            ("padded right", padded_rows(lengths, device, "right")),
        ):
            entry = {"input": name, "form": form, "ok": True}
            wanted = states_and_gradients(reference, batch)
            allowed = [FP32_TOLERANCE] * 2
            if dtype != torch.float32:
                rounding = zip(states_and_gradients(yardstick, batch), wanted, strict=True)
                allowed = [BF16_FACTOR * distance(one, other) for one, other in rounding]
            found = states_and_gradients(model, batch)
            for what, one, other, limit in zip(
                ("states", "gradients"), found, wanted, allowed, strict=True
            ):
                entry[what] = distance(one, other)
                entry[f"{what}_allowed"] = limit
                entry["ok"] &= entry[what] <= max(limit, FP32_TOLERANCE)
            entries.append(entry)
    entries.append(leak(model, device))
    return entries


def leak(model: ChineseModernBertModel, device: torch.device) -> dict:
    """Changes the middle document of a packed row; `ok` if the others' states stay the same."""
    lengths = [70, 90, 131]
    batch, other = packed_row(lengths, device), packed_row(lengths, device, seed=1)
    changed = batch["input_ids"].clone()
    changed[:, 70:160] = other["input_ids"][:, 70:160]
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        after = model(**{**batch, "input_ids": changed}).last_hidden_state
    same = torch.equal(before[:, :70], after[:, :70]) and torch.equal(
        before[:, 160:], after[:, 160:]
    )
    return {"input": "leak probe", "form": "packed", "ok": same}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", required=True)
    parser.add_argument("--longest", type=int, default=8192, help="cuts longer documents")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    device = default_device()
    print("| backend | type | input | form | states | gradients | |\n|---|---|---|---|---|---|---|")
    told, failed = {}, 0
    for backend in arguments.backends:
        for dtype_name, dtype in DTYPES.items():
            if dtype == torch.float32 and ("flash" in backend or "varlen" in backend):
                continue  # these kernels take half precision only, the model refuses
            torch.compiler.reset()  # flex_attention would be at its limit of graphs
            entries = check(backend, dtype, device, arguments.longest)
            told[f"{backend} {dtype_name}"] = entries
            write_json(arguments.output / "parity.json", told)  # the next backend may hang
            for entry in entries:
                failed += not entry["ok"]
                figures = (
                    f"{entry[what]:.1e} of {entry[f'{what}_allowed']:.1e}" if what in entry else ""
                    for what in ("states", "gradients")
                )
                cells = [backend, dtype_name, entry["input"], entry["form"], *figures]
                print("| " + " | ".join(cells) + (" | ok |" if entry["ok"] else " | FAILED |"))
    if failed:
        sys.exit(f"{failed} comparisons failed.")


if __name__ == "__main__":
    main()
