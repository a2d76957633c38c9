"""Similarity against the number of pairs; hard negatives against more tasks. See README.md here.

    python -m experiments.vectors.compare --tasks TASKS --output runs/vectors

What is in the output folder is not trained or measured again.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from embedding.results import COLUMNS
from embedding.run_file import load_run_file
from embedding.train import digest_of
from pretraining.files import read_json, write_json
from pretraining.plain_yaml import read_yaml

HERE = Path(__file__).parent
MODEL = "."
NUMBERS = (300, 1_000, 3_000)
SEEDS = (1, 2, 3)
TASKS = ("stsb", "simclue", "afqmc", "cmrc")
FIGURES = ("STS-B ρ", "SimCLUE AUC", "SimCLUE ρ", "AFQMC AUC", "CMRC nDCG@10")


def command(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def train(way: str, output: Path, args: argparse.Namespace, seed: int, *overrides: str) -> None:
    """Trains one of the run files here, with TASKS for `tasks` in its paths.

    Raises:
        SystemExit: if the output is of another start, other data or settings.
    """
    run = read_yaml(HERE / f"{way}.yaml")
    files = [
        f"tasks.{name}.files=[{file.replace('tasks', str(args.tasks), 1)}]"
        for name, task in run["tasks"].items()
        for file in task["files"]
        if file.startswith("tasks")
    ]
    settings = [f"model={MODEL}", f"exclude={args.tasks}", f"output={output}", f"seed={seed}"]
    settings += [*files, *overrides]
    made = {"digest": digest_of(load_run_file(HERE / f"{way}.yaml", settings))}
    note = output.with_name(f"{output.name}.made.json")
    if not output.exists():
        write_json(note, made)
        command("embedding.train", HERE / f"{way}.yaml", *settings)
    elif read_json(note) != made:
        raise SystemExit(
            f"{output} is of another start, other data or settings; choose another --output."
        )


def mine(model: Path, output: Path, args: argparse.Namespace) -> None:
    """The nearest text of other pairs to each pair, by a model's vectors."""
    if output.exists():
        return
    pairs = args.tasks / "simclue/train_pair_postive_1w.json"
    options = ["--model", model, "--pairs", pairs, "--columns", "query", "title"]
    options += ["--negatives", 1, "--exclude", args.tasks, "--output", output]
    command("embedding.mine", *options)


def train_all(args: argparse.Namespace) -> dict[str, list[str]]:
    """Trains what is missing.

    Returns:
        A row of the table → its models, one a seed.
    """
    folder = args.output
    train("pairs", folder / "start", args, 1, "training.num_train_epochs=0")
    rows = {"no pairs": [str(folder / "start")]}
    for number in NUMBERS:
        rows[f"{number:,} pairs"] = [str(folder / f"{number}-{seed}") for seed in SEEDS]
        for seed, output in zip(SEEDS, rows[f"{number:,} pairs"], strict=True):
            train("pairs", Path(output), args, seed, f"tasks.pairs.limit={number}")
    # Name of the row → its folders, its run file, and whether it learns from the mined pairs.
    ways = {
        "all pairs": ("pairs", "pairs", False),
        "those with a hard negative, without it": ("same-pairs", "pairs", True),
        "those with a hard negative": ("negatives", "negatives", True),
        "more tasks": ("multitask", "multitask", False),
    }
    for name, (stem, way, is_mined) in ways.items():
        rows[name] = [str(folder / f"{stem}-{seed}") for seed in SEEDS]
        for seed, output in zip(SEEDS, rows[name], strict=True):
            overrides = []
            if is_mined:
                mined = folder / f"mined-{seed}.jsonl"
                mine(folder / f"pairs-{seed}", mined, args)
                overrides = [f"tasks.pairs.files=[{mined}]"]
            if stem == "same-pairs":
                overrides += ["tasks.pairs.columns=[anchor, positive]"]
            train(way, Path(output), args, seed, *overrides)
    return rows


def table(rows: dict[str, list[str]], results: dict) -> str:
    """Mean and spread of the seeds, Markdown."""
    lines = [f"| | {' | '.join(FIGURES)} |", "|---" + "|--:" * len(FIGURES) + "|"]
    for name, models in rows.items():
        cells = []
        for task, metric in (COLUMNS[heading] for heading in FIGURES):
            found = [results["models"][model]["tasks"][task][metric] for model in models]
            spread = f" ({max(found) - min(found):.3f})" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=Path, required=True, help="folder of unpacked tasks")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = train_all(args)
    results = args.output / "results.json"
    models = [model for row in rows.values() for model in row]
    options = ["--tasks", args.tasks, "--models", *models, "--only", *TASKS, "--output", results]
    command("embedding.evaluate", *options)
    print(table(rows, read_json(results)))


if __name__ == "__main__":
    main()
