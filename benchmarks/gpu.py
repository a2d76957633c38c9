"""Everything that only a GPU can show, in one command and eight minutes: `make gpu`.

Parity of the CUDA backends forward and backward, 150 training steps, and throughput and memory
beside the peers. Needs torch, transformers and what they depend on, and no network. Each part runs
in a process of its own, so that a failure does not stop the others; one whose time is up leaves
what it has measured until then. Tables and logs are in the output folder, at most eight files.
`--tiny` tries everything with tiny shapes, on a CPU too. No weights are needed: where a checkout
has to be carried to the machine, leave `model.safetensors` and `models/` out.
"""

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from common import ROOT
from pretraining.run.time_limit import run_at_most


def parts(output: Path, tiny: bool) -> dict[str, tuple[int, list[str]]]:
    """Name -> (seconds that it may take, script and arguments)."""
    cuda = torch.cuda.is_available()
    backends = ["sdpa", *["varlen_attention"] * cuda]
    backends += ["flash_attention_2"] * (cuda and find_spec("flash_attn") is not None)
    # flex_attention is never chosen by itself, and compiling its kernels takes longest: it comes
    # last in parity, and is not timed.
    parity = ["parity.py", "--backends", *backends, *["flex_attention"] * cuda]
    throughput = ["throughput.py", "--backends", *backends, "--dtypes", "bf16"]
    throughput += ["--compile", "--no_compiled_peer"]
    training = ["train_steps.py"]
    if tiny:
        limits = {"parity": 300, "training": 300, "throughput": 300}
        parity += ["--longest", "200"]
        throughput += ["--tiny", "--layers", "2", "--rounds", "1"]
        training += ["--size", "configs/tiny.json", "--steps", "20"]
        training += ["--rows", "4", "--seq_len", "128"]
    else:
        limits = {"parity": 120, "training": 150, "throughput": 300}
        throughput += ["--layers", "28", "--rounds", "5", "--scale", "8"]
        training += ["--size", "configs/base.json", "--steps", "150"]
    if cuda:  # on a CPU it would take longer than all the rest
        training += ["--compile"]
    # Throughput comes last, because it has most to show when it is cut short.
    commands = {"parity": parity, "training": training, "throughput": throughput}
    return {
        name: (limits[name], [*command, "--output", str(output)])
        for name, command in commands.items()
    }


def run(name: str, limit: float, command: list[str], output: Path) -> bool:
    """Runs a part, prints its output and keeps it as a log; returns whether it succeeded."""
    print(f"\n== {name} (at most {limit} s)\n$ python benchmarks/{' '.join(command)}", flush=True)
    start = time.perf_counter()
    script, *arguments = command
    with open(output / f"{name}.log", "w", encoding="utf-8") as log:
        code = run_at_most(
            limit,
            [sys.executable, "-u", str(ROOT / "benchmarks" / script), *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if code is None:
            log.write(f"\nstopped after {limit} s\n")
    print((output / f"{name}.log").read_text(encoding="utf-8"))
    print(f"{name}: {'ok' if code == 0 else 'FAILED'} in {time.perf_counter() - start:.0f} s")
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no CUDA device; try it on the CPU with --tiny.")
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    end, failed = time.perf_counter() + 60 * arguments.minutes, []
    for name, (limit, command) in parts(arguments.output, arguments.tiny).items():
        left = max(0, round(end - time.perf_counter()))
        if not run(name, min(limit, left), command, arguments.output):
            failed.append(name)
    print(f"\nTables and logs: {arguments.output}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
