"""Peak memory of a forward over one long document, for every side of a comparison.

A GPU's peak can be reset. On a CPU each side runs in a process of its own, which is this file as a
script: what one side has allocated would otherwise count for the next.
"""

import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from common import CPU
from inputs import padded_batch
from sides import Comparison, Shape, Side, encoder


def peak_memory(comparison: Comparison, length: int) -> dict[str, float]:
    """MiB that a forward over `length` tokens in bf16 adds to each side, as a table too.

    Compiled sides are left out: the compiler's own memory would be measured.

    Returns:
        Label -> MiB; empty where the system tells no peak.
    """
    on_gpu = comparison.device.type == "cuda"
    if not (on_gpu or Path("/proc/self/clear_refs").exists()):
        print("\nNo peak memory: it is read from /proc, which this system does not have.")
        return {}
    print(f"\n| peak memory, 1 × {length:,}, bf16 | MiB |\n|---|---|")
    peaks = {}
    for label, side in comparison.sides.items():
        if side.compiler is not None:
            continue
        if on_gpu:
            gc.collect()
            peaks[label] = forward_memory(side, comparison.shape, length, comparison.device)
        else:
            job = {"side": asdict(side), "shape": asdict(comparison.shape), "length": length}
            command = [sys.executable, __file__, json.dumps(job)]
            finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks[label] = float(finished.stdout.split()[-1])
        print(f"| {label} | {peaks[label]:,.0f} |", flush=True)
    return peaks


def forward_memory(side: Side, shape: Shape, length: int, device: torch.device) -> float:
    """MiB that one forward adds to this process, or to the GPU."""
    with device:
        model = encoder(side.build(shape)).to(torch.bfloat16)
    batch = padded_batch([length], device)
    with torch.inference_mode():
        model(**padded_batch([16], device))  # loads what the first call loads
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(**batch)
            return (torch.cuda.max_memory_allocated(device) - before) / 2**20
        before = _resident_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which was the building
        model(**batch)
        return _resident_memory("VmHWM") - before


def _resident_memory(entry: str) -> float:
    """MiB of this process: VmRSS, what it holds now; VmHWM, the most it has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(entry)).split()[1]) / 2**10


def main() -> None:
    job = json.loads(sys.argv[1])
    side, shape = Side(**job["side"]), Shape(**job["shape"])
    print(forward_memory(side, shape, job["length"], CPU))


if __name__ == "__main__":
    main()
