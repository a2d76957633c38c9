"""What the model at the root can do, then from raw text to a model of your own, on a CPU.

Fills masks with the model of the repository, prepares the example corpus, trains both stages of the
tiny size, draws the run, and opens the result. `make quickstart` runs it.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/quickstart")
FINAL = RUN / "stage2" / "final"


def step(title: str, *command: str) -> None:
    """Runs one command of the README in a process of its own, and stops where it fails."""
    print(f"\n== {title}\n$ python {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f"quickstart: the step {title!r} failed, see above.")


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(ROOT / RUN, ignore_errors=True)  # its own earlier outcome, nothing of the user's
    step("what the model at the root can do", "examples/fill_mask.py")
    for seq_len in (256, 2048):
        for split in ("train", "valid"):
            step(
                f"prepare {split} rows of {seq_len} tokens",
                *("-m", "pretraining.prepare_corpus"),
                *("--corpus", f"examples/corpus/{split}.jsonl"),
                *("--tokenizer", ".", "--seq_len", str(seq_len)),
                *("--output", str(RUN / "rows" / f"{split}-{seq_len}")),
            )
    step("train both stages", "train_mlm.py", "configs/quickstart.yaml")
    step("draw the run", "-m", "pretraining.plot_run", str(RUN))
    step("open the result and fill masks", "examples/fill_mask.py", str(FINAL))
    print(
        f"\nAll done in {(time.perf_counter() - start) / 60:.1f} minutes.\n"
        f"  a model that is ready for the Hub: {FINAL}\n"
        f"  its training, drawn:               {RUN / 'run.png'}\n"
        "It has read a very small corpus many times over, which shows that everything works and\n"
        "not what such a model can do.\n"
        "\nWhat to try next, after `source .venv/bin/activate`:\n"
        '  python examples/fill_mask.py . "我想喝一杯[MASK]。"\n'
        f"  python -m pretraining.inspect_rows {RUN / 'rows' / 'train-256'} --row 0 "
        "--mask_rate 0.3\n"
        "  docs/usage.md     embeddings, classification, entities, questions\n"
        "  docs/training.md  your own corpus, your own run"
    )


if __name__ == "__main__":
    main()
