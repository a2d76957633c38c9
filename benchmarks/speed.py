"""Tokens per second of inference and of training, for every side of a comparison."""

import functools
import statistics
import sys
from dataclasses import dataclass

import torch

from common import DTYPES, interleaved, median_ratio
from data_collator_wwm import IGNORED
from inputs import mixed_lengths, packed_batch, padded_batch, with_labels
from pretraining.run.flops import encoder_flops, matrix_product, training_flops
from sides import MODERNBERT, OURS, Comparison, Shape, build, encoder

# Mean difference of states of size one from the eager reference: fp32 adds up in another order;
# bf16 rounds by 0.4 % at each of the steps in between.
PARITY = {torch.float32: 1e-4, torch.bfloat16: 0.03}

PRODUCTS = "matrix products"  # timed in the same rounds as the sides

HEADER = (
    "| workload | type | side | real tokens/s | ratio to ModernBERT | share of matrix products |\n"
    "|---|---|---|---|---|---|"
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
        """The result as a row of the table under `HEADER`."""
        ratio = "" if self.against_modernbert is None else f"{self.against_modernbert:.2f}"
        share = "" if self.share_of_matrix_rate is None else f"{self.share_of_matrix_rate:.0%}"
        return (
            f"| {self.workload} | {self.dtype} | {self.side} | {self.tokens_per_second:,.0f} "
            f"| {ratio} | {share} |"
        )


@dataclass(frozen=True)
class Workload:
    """What one step has to do.

    `tokens` are real tokens, `flops` the multiplications and additions that they need.
    """

    name: str
    dtype: str
    tokens: int
    flops: float


def check_parity(
    shape: Shape, backend: str | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Ends the run if our model's states are not those of the eager reference.

    Raises:
        SystemExit: with the difference.
    """
    states = {}
    batch = padded_batch([300, 7, 131, 64], device)
    for name in ("eager", backend):
        with device:
            model = encoder(build(OURS, shape, name)).to(dtype)
        with torch.inference_mode():
            states[name] = model(**batch).last_hidden_state.float()
        del model
    difference = (states["eager"] - states[backend]).abs().mean().item()
    if not difference <= PARITY[dtype]:
        sys.exit(
            f"{backend or 'the default backend'} in {dtype} differs from eager by {difference:.2g} "
            f"on average (rounding explains at most {PARITY[dtype]:.2g}), so no figures are given."
        )


def report(workload: Workload, times: dict[str, list[float]], product_flops: float) -> list[Result]:
    """Prints and returns one line per side; the share of matrix products is for our own sides.

    Args:
        times: seconds of each side, and of `PRODUCTS`, in each round.
        product_flops: operations of one matrix product.
    """
    results = []
    for side, own in times.items():
        if side == PRODUCTS:
            continue
        ratio = share = None
        if side != MODERNBERT and MODERNBERT in times:
            ratio = median_ratio(times[MODERNBERT], own)
        if side.startswith(OURS):
            share = median_ratio(times[PRODUCTS], own) * workload.flops / product_flops
        rate = workload.tokens / statistics.median(own)
        results.append(Result(workload.name, workload.dtype, side, rate, ratio, share))
        print(results[-1].line(), flush=True)
    return results


def inference(
    comparison: Comparison, workloads: dict[str, list[int]], dtypes: list[str]
) -> list[Result]:
    """Forward of the bare encoder, on padded batches.

    Args:
        workloads: name -> lengths of the documents.
        dtypes: keys of `DTYPES`.
    """
    shape, device = comparison.shape, comparison.device
    results = []
    for dtype_name in dtypes:
        dtype = DTYPES[dtype_name]
        models = {
            label: side.ready(encoder(comparison.build(side)).to(dtype))
            for label, side in comparison.sides.items()
        }
        product, product_flops = matrix_product(shape.config(), dtype, device)
        for name, lengths in workloads.items():
            batch = padded_batch(lengths, device)
            runs = {label: functools.partial(model, **batch) for label, model in models.items()}
            with torch.inference_mode():
                times = interleaved(runs | {PRODUCTS: product}, comparison.rounds, device)
            flops = encoder_flops(shape.config(), lengths)
            workload = Workload(name, dtype_name, sum(lengths), flops)
            results += report(workload, times, product_flops)
    return results


def training(comparison: Comparison, count: int, row: int, dtypes: list[str]) -> list[Result]:
    """Forward, backward and optimizer step: our packed rows against the peers' padded batch.

    Args:
        count: documents of a step, 32 to `row` tokens long.
        row: tokens of a packed row.
        dtypes: keys of `DTYPES`; bf16 is autocast, the weights stay in fp32.
    """
    shape, device = comparison.shape, comparison.device
    lengths = mixed_lengths(count, row)
    packed = with_labels(packed_batch(lengths, row, device))
    padded = with_labels(padded_batch(lengths, device))
    results = []
    for dtype_name in dtypes:
        runs = {}
        for label, side in comparison.sides.items():
            model = comparison.build(side).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            batch, forward = packed if side.name == OURS else padded, side.ready(model)

            def step(forward=forward, optimizer=optimizer, batch=batch, dtype=DTYPES[dtype_name]):
                bf16 = dtype == torch.bfloat16
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    forward(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            runs[label] = step
        product, product_flops = matrix_product(shape.config(), DTYPES[dtype_name], device)
        times = interleaved(runs | {PRODUCTS: product}, comparison.rounds, device)
        masked = int((packed["labels"] != IGNORED).sum())
        flops = training_flops(shape.config(), lengths, masked)
        workload = Workload(f"training, {count} × 32–{row}", dtype_name, sum(lengths), flops)
        results += report(workload, times, product_flops)
    return results
