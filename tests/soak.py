"""Kills a run again and again and compares what comes out with a run that nobody disturbed.

    python tests/soak.py --kills 20

Two stages on the example corpus, two processes with two data workers each. Every process of the run
is killed at a random moment, every third time while a checkpoint is being written. The weights and
the losses of both stages must be the same bytes in the end.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pretraining.data.preparation import Preparation

ROOT = Path(__file__).resolve().parent.parent
MODEL = {
    "vocab_size": 32_000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
STEPS = {1: 60, 2: 24}


def write_run(folder: Path, steps: dict[int, int] = STEPS) -> Path:
    """Rows, model and run file of a small run with two stages; returns the run file.

    Args:
        steps: of each stage.
    """
    run = {
        "model": str(folder / "model.json"),
        "tokenizer": str(ROOT),
        "output_dir": str(folder / "run"),
        "training": {
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "save_steps": 4,
            "save_total_limit": 2,
            "per_device_train_batch_size": 1,
            "dataloader_num_workers": 2,
        },
    }
    (folder / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
    corpus = [str(ROOT / "examples" / "corpus" / "valid.jsonl")]
    for stage, seq_len in ((1, 64), (2, 256)):
        rows = folder / f"rows-{seq_len}"
        Preparation(corpus, ROOT / "tokenizer.json", seq_len, rows).run()
        run[f"stage{stage}"] = {
            "train_rows": str(rows),
            "eval_rows": str(rows),
            "rows_per_step": 4,
            "learning_rate": {"peak": 2e-3, "minimum": 1e-4, "warmup_steps": 3},
            "training": {"max_steps": steps[stage]},
        }
    file = folder / "run.yaml"
    file.write_text(yaml.dump(run), encoding="utf-8")
    return file


def launch(processes: int, *arguments: str) -> list[str]:
    """The command that trains with so many processes on this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun, str(ROOT / "train_mlm.py"), *map(str, arguments)]


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher, its processes and their workers, all at once."""
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        member.suspend()
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


def half_written(folder: Path) -> bool:
    """Whether a checkpoint lies there without the file that is written last."""
    return any(
        not (checkpoint / "trainer_state.json").exists()
        for checkpoint in folder.glob("stage*/checkpoint-*")
    )


def trained_steps(folder: Path) -> int:
    logs = folder.glob("stage*/log.jsonl")
    return sum(log.read_text(encoding="utf-8").count('"loss"') for log in logs)


def disturb(run_file: Path, output: Path, processes: int, kills: int, seed: int) -> int:
    """Trains to the end in spite of the kills.

    Returns:
        How many kills fell into the write of a checkpoint.
    """
    draw = random.Random(seed)
    command = launch(processes, run_file, f"output_dir={output}", "--resume")
    within = 0
    for number in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun, enough = trained_steps(output), draw.randint(1, 4)
        in_a_write = number % 3 == 2
        while process.poll() is None:
            if trained_steps(output) - begun >= enough and (not in_a_write or half_written(output)):
                break
            time.sleep(0.001 if in_a_write else 0.02)
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed as often as it should")
        kill(process)
        within += half_written(output)
        print(f"kill {number + 1}: after {trained_steps(output)} logs", flush=True)
    subprocess.run(command, check=True)
    return within


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: weights, or the losses of a stage."""
    found = []
    for stage in STEPS:
        folders = [run / f"stage{stage}" for run in (one, other)]
        weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in folders]
        if weights[0] != weights[1]:
            found.append(f"stage {stage}: weights")
        losses = [
            [json.loads(line).get("loss") for line in (folder / "log.jsonl").open("rb")]
            for folder in folders
        ]
        if losses[0] != losses[1]:
            found.append(f"stage {stage}: losses")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = write_run(folder)
        subprocess.run(launch(arguments.processes, run_file), check=True)
        within = disturb(
            run_file, folder / "disturbed", arguments.processes, arguments.kills, arguments.seed
        )
        found = differences(folder / "run", folder / "disturbed")
        print(
            f"{arguments.kills} kills, {within} of them in the write of a checkpoint: "
            + (", ".join(found) + " differ" if found else "the same weights and losses")
        )
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
