"""The file of an evaluation's figures, and the table made of it."""

import hashlib
from datetime import date
from pathlib import Path

import sentence_transformers
import torch
import transformers

from embedding.encoder import Opening
from pretraining.files import read_json
from pretraining.machine import processor

# Heading -> task and metric.
COLUMNS = {
    "STS-B ρ": ("stsb", "spearman"),
    "SimCLUE AUC": ("simclue", "auc"),
    "SimCLUE ρ": ("simclue", "spearman"),
    "SimCLUE r": ("simclue", "pearson"),
    "AFQMC AUC": ("afqmc", "auc"),
    "OCNLI AUC": ("ocnli", "auc"),
    "TriCLUE acc.": ("triclue", "accuracy"),
    "SimCLUE ranks acc.": ("simclue_ranks", "accuracy"),
    "CMRC MRR@10": ("cmrc", "mrr@10"),
    "CMRC nDCG@10": ("cmrc", "ndcg@10"),
    "DRCD MRR@10": ("drcd", "mrr@10"),
    "DRCD nDCG@10": ("drcd", "ndcg@10"),
    "CSL MRR@10": ("csl", "mrr@10"),
    "CSL nDCG@10": ("csl", "ndcg@10"),
    "CSL recall@10": ("csl", "recall@10"),
    "STS-B dev ρ": ("stsb_dev", "spearman"),
    "DRCD dev nDCG@10": ("drcd_dev", "ndcg@10"),
    "CMRC trial nDCG@10": ("cmrc_trial", "ndcg@10"),
}
# Heading -> figure of `embedding.speed` and its format.
SPEED_COLUMNS = {
    "sentences/s": ("sentences_per_second", ".0f"),
    "paragraphs/s": ("paragraphs_per_second", ".0f"),
    "ms alone": ("latency_ms", ".1f"),
    "MB on disk": ("disk_mb", ".0f"),
    "MB memory": ("memory_mb", ".0f"),
    "parameters": ("parameters", ",d"),
}


def fingerprint(opening: Opening | None) -> str:
    """What tells one state of a model from another: weights, size of the vectors and type."""
    if opening is None:
        return "lexical, words in lower case"
    return hashlib.sha256(f"{opening.dtype} {opening.fingerprint()}".encode()).hexdigest()


def open_results(file: Path) -> dict:
    """The figures of an earlier evaluation, or the frame for new ones.

    Raises:
        ValueError: if the file holds something else.
    """
    if file.exists():
        results = read_json(file)
        if not isinstance(results, dict) or "models" not in results:
            raise ValueError(f"{file} does not hold figures of an evaluation. Name another file.")
        return results
    return {"date": date.today().isoformat(), **surroundings(), "models": {}}


def surroundings() -> dict[str, str | int]:
    """The machine and the versions."""
    return {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }


def table(results: dict, names: list[str]) -> str:
    """A Markdown table, one line a model; a column that no model has a figure for is left out."""
    rows = {name: _cells(results["models"][name]) for name in names}
    found = dict.fromkeys(heading for cells in rows.values() for heading in cells)
    known = [*COLUMNS, *(heading for heading in found if heading not in COLUMNS)]
    headings = [heading for heading in known if heading in found]
    lines = ["| model | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for name, cells in rows.items():
        values = [cells.get(heading, "—") for heading in headings]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _cells(model: dict) -> dict[str, str]:
    """Heading → figure, for those that the model has."""
    cells = {}
    for heading, (task, metric) in COLUMNS.items():
        metrics = model["tasks"].get(task)
        if metrics:
            cells[heading] = f"{metrics[metric]:.3f}"
    for task, metrics in model["tasks"].items():
        if metrics and "main_score" in metrics:
            cells[task] = f"{metrics['main_score']:.3f}"
    for heading, (key, form) in SPEED_COLUMNS.items():
        value = model.get("speed", {}).get(key)
        if value is not None:
            cells[heading] = format(value, form)
    return cells
