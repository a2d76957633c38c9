"""Checks that no text of the test sets is in what was, or will be, trained on.

    python -m embedding.leakage RUN.yaml [RUN.yaml …] --tasks TASKS

Reads the data of each run file as training would, with what its key `exclude` drops, and looks for
every text of the test sets in TASKS, whatever its punctuation, width, spaces and script. A pair of
a test set cannot be in the data if neither of its texts is. Ends with an error if one is found.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from embedding.held_out import HeldOut
from embedding.run_file import RunFile, load_run_file
from embedding.train import load_data, row_texts
from pretraining.command import readable_errors


def leaks(run: RunFile, held_out: HeldOut) -> dict[str, list[str]]:
    """The texts of test sets in each task of a run, by the task's name.

    Raises:
        OSError, ValueError: if the run's data cannot be read.
    """
    found: dict[str, set[str]] = {task.name: set() for task in run.tasks}
    # Conversion exchanges words, too: a text is looked for as it was before as well.
    original = [dataclasses.replace(task, traditional=False) for task in run.tasks]
    for tasks in [run.tasks] + [original] * any(task.traditional for task in run.tasks):
        rows, _ = load_data(dataclasses.replace(run, tasks=tasks))
        for name, data in rows.items():
            found[name] |= {text for text in set(row_texts(data)) if held_out.holds(text)}
    return {name: sorted(texts) for name, texts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.yaml")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of unpacked tasks")
    args = parser.parse_args()
    total = 0
    with readable_errors("leakage"):
        held_out = HeldOut(args.tasks)
        for run_file in args.runs:
            for name, texts in leaks(load_run_file(run_file), held_out).items():
                total += len(texts)
                example = f", such as {texts[0]!r}" if texts else ""
                print(f"{run_file} {name}: {len(texts):,} texts of the test sets{example}")
    if total:
        sys.exit(
            f"{total:,} texts of the test sets would be trained on: set `exclude: {args.tasks}`."
        )
    print(f"None of the {len(held_out):,} texts of the test sets is in the training data.")


if __name__ == "__main__":
    main()
