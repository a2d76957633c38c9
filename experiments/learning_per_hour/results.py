"""What an experiment came to: one JSON file a run, and the leaderboard in README.md.

A run's file holds its settings, its figures on held-out rows, the log of its training, and what it
was made with. The leaderboard follows from these files and the experiments' verdicts alone.
"""

import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from experiments.learning_per_hour.experiment import BASE, FOLDER, Experiment
from pretraining.data.encoding import open_with_tokenizer
from pretraining.files import read_json, read_text, write_text
from pretraining.model_report import predict, report
from pretraining.run.evaluation import evaluation_collator

ROOT = FOLDER.parent.parent
BITS, ACCURACY = "bits_per_character", "masked_accuracy"
CURVE = ("step", "num_input_tokens_seen", "loss", BITS, "mask_rate", "learning_rate", "grad_norm")
BEGIN, END = "<!-- leaderboard -->", "<!-- end of leaderboard -->"


def run_name(name: str, minutes: float, seed: int) -> str:
    """The name of a run, of its folder and of its results."""
    return f"{name}.{minutes:g}min.seed{seed}"


def evaluate(model: Path, held_out: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Name of a row set -> the figures of a finished model on it."""
    figures = {}
    for name, folder in held_out.items():
        rows, tokenizer = open_with_tokenizer(folder, model / "tokenizer.json")
        predictions = {"model": predict(str(model), rows, evaluation_collator(rows))}
        on_rows, figures[name] = report(name, rows, tokenizer, predictions), {}
        for group, chosen in {"": None, **on_rows.groups}.items():
            score = on_rows.sides["model"].score(chosen)
            figures[name][f"{BITS}{group}"] = score.bits_per_character.value
            figures[name][f"{ACCURACY}{group}"] = score.accuracy.value
    return figures


def curve_of(log: Path) -> list[dict]:
    """The training log of a stage, without what only concerns its speed."""
    entries = read_json(log)
    return [{key: each.get(key) for key in CURVE} for each in entries if "loss" in each]


def made_with() -> dict:
    """Versions, hardware and the state of the repository, which is empty where git is missing."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _git("diff", "--name-only", "HEAD", "--", "*.py", "*.yaml").split(),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # hours of work are behind this
        return ""
    return done.stdout.strip()


def read_results(folder: Path) -> list[dict]:
    """All runs of a folder."""
    return [read_json(file) for file in sorted(folder.glob("*.json"))]


def leaderboard(experiments: Mapping[str, Experiment], results: Sequence[dict]) -> str:
    """Markdown: one table a budget, the best first; runs of removed experiments are left out."""
    tables = []
    for minutes in sorted({each["minutes"] for each in results}):
        of_budget = [each for each in results if each["minutes"] == minutes]
        tables.append(f"### {minutes:g} minutes\n\n{_table(experiments, of_budget)}")
    return "\n\n".join(tables)


def _table(experiments: Mapping[str, Experiment], results: Sequence[dict]) -> str:
    runs = {name: [each for each in results if each["experiment"] == name] for name in experiments}
    runs = {name: of_name for name, of_name in runs.items() if of_name}
    held_out = list(dict.fromkeys(name for each in results for name in each["held_out"]))
    deciding = held_out[0] if held_out else ""
    heads = [
        "experiment",
        "change",
        *(f"bits per character, {name}" for name in held_out),
        "difference",
        "masked accuracy",
        "tokens/s",
        "tokens",
        "seeds",
        "verdict",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 3)}---|"]
    for name in sorted(runs, key=lambda name: _mean(runs[name], deciding, BITS)):
        experiment, of_name = experiments[name], runs[name]
        below = runs.get(experiment.on, [])
        finished = [
            {each["seed"] for each in side if deciding in each["held_out"]}
            for side in (of_name, below)
        ]
        shared = set.intersection(*finished)
        ours, theirs = (
            [each for each in side if each["seed"] in shared] for side in (of_name, below)
        )
        difference = _mean(ours, deciding, BITS) - _mean(theirs, deciding, BITS)
        stopped = next((each["stopped"] for each in of_name if each["stopped"]), None)
        cells = [
            name,
            experiment.change if experiment.on == BASE else f"{experiment.on}, {experiment.change}",
            *(_shown(_values(of_name, each, BITS), "{:.3f}") for each in held_out),
            f"{difference:+.3f}" if name != BASE and math.isfinite(difference) else "",
            _shown([100 * each for each in _values(of_name, deciding, ACCURACY)], "{:.1f} %"),
            " and ".join(f"{each:.2f}" for each in of_name[0]["speed_ratios"]),
            f"{statistics.fmean(each['tokens'] for each in of_name) / 1e6:.1f} M",
            str(len(of_name)),
            experiment.verdict or (f"stopped: {stopped}" if stopped else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(runs: Sequence[dict], held_out: str, figure: str) -> list[float]:
    return [each["held_out"][held_out][figure] for each in runs if held_out in each["held_out"]]


def _mean(runs: Sequence[dict], held_out: str, figure: str) -> float:
    """Infinite where there is no finished run."""
    values = _values(runs, held_out, figure)
    return statistics.fmean(values) if values else math.inf


def _shown(values: Sequence[float], form: str) -> str:
    """The mean, with half the distance of the extremes if there are several."""
    if not values:
        return "–"
    mean = form.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {form.format((max(values) - min(values)) / 2)}"


def write_leaderboard(page: Path, table: str) -> None:
    """Replaces what stands between the two markers of a page.

    Raises:
        ValueError: if it lacks them.
    """
    text = read_text(page)
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page}: the lines {BEGIN} and {END} are missing; put them back.")
    block = f"{BEGIN}\n\n{table}\n\n{END}"
    write_text(page, pattern.sub(lambda _: block, text))
