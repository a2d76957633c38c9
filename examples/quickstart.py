"""From raw text to a model that fills masks, in a few minutes on a CPU.

Prepares the example corpus, trains both stages of the tiny size, draws the run, and opens the
result in a fresh process. `make quickstart` runs it; the outcome lies in runs/quickstart.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/quickstart")


def step(title: str, *command: str) -> None:
    """Runs one command of the README in a process of its own, and stops where it fails."""
    print(f"\n== {title}\n$ python {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f"quickstart: the step {title!r} failed, see above.")


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(ROOT / RUN, ignore_errors=True)  # its own earlier outcome, nothing of the user's
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
    step("fill masks in a fresh process", "examples/fill_mask.py", str(RUN / "stage2" / "final"))
    print(f"\nAll done in {(time.perf_counter() - start) / 60:.1f} minutes.")
    print(f"  model:   {RUN / 'stage2' / 'final'}  (ready for the Hub)")
    print(f"  picture: {RUN / 'run.png'}")


if __name__ == "__main__":
    main()
