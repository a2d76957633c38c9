"""The training step of this checkout beside that of another one, on a CPU.

    git worktree add ../before d1d3d60
    python benchmarks/training_step.py --against ../before --rows rows/train-512

Both train the same model from the same weights on the same masked batches, compiled, in bf16, each
in a process of its own; they take turns of a few steps. Prints tokens/s, their ratio, and how far
the losses are apart.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
BATCHES = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="another checkout (default: this one alone)")
    parser.add_argument("--rows", type=Path, required=True, help="row set of training text")
    parser.add_argument("--size", default="configs/mini.json", help="model configuration")
    parser.add_argument("--rows_per_step", type=int, default=8)
    parser.add_argument("--mask_rate", type=float, default=0.22)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # a process that this script starts
    arguments = parser.parse_args()
    if arguments.side:
        return train_on_demand(Path(arguments.side), arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder, "batches.pt")
        tokens = save_batches(arguments, batches)
        compare(arguments, batches, tokens)


def save_batches(arguments: argparse.Namespace, file: Path) -> int:
    """Writes the batches that all sides train on; returns the positions of one."""
    # Not at the top of the file: a side imports its own checkout's modules.
    import common  # noqa: F401 (puts the root on sys.path)
    from data_collator_wwm import DataCollatorForWholeWordMasking
    from pretraining.data.order import TrainingOrder
    from pretraining.data.rows import open_rows

    rows = open_rows(arguments.rows)
    order = TrainingOrder(rows, BATCHES * arguments.rows_per_step, arguments.rows_per_step, seed=1)
    collator = DataCollatorForWholeWordMasking.for_rows(rows, seed=1, mask_rate=arguments.mask_rate)
    torch.save(
        [collator([order[each] for each in order.positions(step)]) for step in range(BATCHES)], file
    )
    return arguments.rows_per_step * rows.seq_len


def compare(arguments: argparse.Namespace, batches: Path, tokens: int) -> None:
    """Lets the sides take turns, and prints what they did."""
    checkouts = {"this checkout": ROOT}
    if arguments.against:
        checkouts["the other"] = arguments.against.resolve()
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(side(checkout, batches, arguments.size))
            for name, checkout in checkouts.items()
        }
        seconds, losses = {name: [] for name in sides}, {name: [] for name in sides}
        for number in range(arguments.rounds + 1):
            for name, process in sides.items():
                print(arguments.steps, file=process.stdin, flush=True)
                answer = process.stdout.readline()
                if not answer:
                    sys.exit(f"training_step: {name} failed, see above")
                told = json.loads(answer)
                losses[name] += told["losses"]
                if number:  # the first turn compiles
                    seconds[name].append(statistics.median(told["seconds"]))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, each in seconds.items():
        print(
            f"{name}: {tokens / statistics.median(each):,.0f} tokens/s, loss {losses[name][-1]:.3f}"
        )
    if arguments.against:
        ours, theirs = seconds.values()
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        apart = [abs(a - b) for a, b in zip(*losses.values(), strict=True)]
        print(
            f"ratio {statistics.median(ratios):.2f} (of neighboring turns {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}); losses of {len(apart)} steps at most {max(apart):.4f} apart, "
            f"{statistics.fmean(apart):.4f} on average"
        )


def side(checkout: Path, batches: Path, size: str) -> subprocess.Popen:
    """A process that trains with a checkout's code whenever it is told to."""
    command = [sys.executable, __file__, "--rows", batches, "--size", size, "--side", checkout]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
    )


def train_on_demand(checkout: Path, size: str) -> None:
    """Reads numbers of steps from stdin, and prints the seconds and the loss of each."""
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    from configuration_chinese_modernbert import ChineseModernBertConfig
    from modeling_chinese_modernbert import ChineseModernBertForMaskedLM

    with contextlib.suppress(ImportError):  # of other checkouts
        from pretraining.run.allocator import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(1)
    model = ChineseModernBertForMaskedLM(ChineseModernBertConfig.from_json_file(size)).train()
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    batches = torch.load(sys.argv[sys.argv.index("--rows") + 1])
    done = 0
    for line in sys.stdin:
        told = {"seconds": [], "losses": []}
        for _ in range(int(line)):
            batch, start = batches[done % len(batches)], time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = compiled(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            told["seconds"].append(time.perf_counter() - start)
            told["losses"].append(float(loss.detach()))
            done += 1
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
