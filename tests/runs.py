"""A small pretraining run on the example corpus, for the tests that look at it from all sides."""

import json
import sys
from pathlib import Path

import yaml

import train_mlm
from commands import run_main
from pretraining.data.preparation import Preparation
from pretraining.run.configuration import load_run
from pretraining.run.settings import check_stage
from pretraining.run.stage_data import open_data

ROOT = Path(__file__).parent.parent
STEPS = {1: 50, 2: 6}
LEARNING_RATE = {"peak": 2e-3, "minimum": 1e-4, "warmup_steps": 3, "cycles": 2, "damping": 1.0}
MASK_RATE = {"minimum": 0.15, "maximum": 0.30, "warmup_steps": 4}
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}


def make_workspace(folder: Path) -> None:
    """Rows of 64 and 256 tokens, a model configuration and a run file of two stages."""
    for seq_len in (64, 256):
        corpus = [str(ROOT / "examples" / "corpus" / "valid.jsonl")]
        Preparation(corpus, ROOT / "tokenizer.json", seq_len, folder / f"rows-{seq_len}").run()
    (folder / "model.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    run = {
        "model": str(folder / "model.json"),
        "tokenizer": str(ROOT),
        "output_dir": str(folder / "run"),
        "seed": 5,
        "training": {"logging_steps": 1, "use_cpu": True, "report_to": "tensorboard"},
    }
    for stage, seq_len in ((1, 64), (2, 256)):
        run[f"stage{stage}"] = {
            "train_rows": str(folder / f"rows-{seq_len}"),
            "eval_rows": str(folder / f"rows-{seq_len}"),
            "rows_per_step": 4,
            "learning_rate": LEARNING_RATE,
            "mask_rate": MASK_RATE,
            "training": {
                "max_steps": STEPS[stage],
                "save_steps": 10,
                "per_device_train_batch_size": 2,
            },
        }
    (folder / "run.yaml").write_text(yaml.dump(run), encoding="utf-8")


def make_model_file(folder: Path, **changes) -> str:
    """Writes a model configuration; returns the override that names it."""
    (folder / "other.json").write_text(json.dumps(SHAPE | changes), encoding="utf-8")
    return f"model={folder / 'other.json'}"


def command(workspace: Path, *arguments: str) -> list[str]:
    """The command that trains in a process of its own."""
    return [sys.executable, str(ROOT / "train_mlm.py"), str(workspace / "run.yaml"), *arguments]


def run_here(workspace: Path, *arguments: str) -> None:
    """The same command in this process."""
    run_main(train_mlm, workspace / "run.yaml", *arguments)


def stage_of(workspace: Path, *changes: str):
    """Stage 1 of the run, as train_mlm.py checks and opens it."""
    settings = check_stage(load_run(str(workspace / "run.yaml"), changes), 1, alone=True)
    return settings, open_data(settings)


def state_of(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was last written."""
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}
