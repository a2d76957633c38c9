"""One run on any number of processes, and through kills."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

import fsdp_on_cpu
import soak
from runs import run_here

STEPS = {1: 32, 2: 8}


@pytest.fixture(scope="module")
def run_file(made_once) -> Path:
    return made_once("distributed", lambda folder: soak.write_run(folder, STEPS)) / "run.yaml"


@pytest.fixture(scope="module")
def two_processes(made_once, run_file) -> Path:
    """Both stages with two processes, undisturbed."""

    def train(folder: Path) -> None:
        subprocess.run(soak.launch(2, run_file, f"output_dir={folder}"), check=True)

    return made_once("two-processes", train)


def accelerate(launch_file: str, *arguments, processes: int = 2) -> list[str]:
    """The command that trains with so many processes as a file in configs/launch/ says."""
    file = soak.ROOT / "configs" / "launch" / launch_file
    program = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
    return [*map(str, (*program, "--num_processes", processes, *arguments))]


def with_tests_on_the_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{soak.ROOT}{os.pathsep}{Path(__file__).parent}"}


def wait_for(file: Path, process: subprocess.Popen) -> None:
    while not file.exists():
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.02)


def losses(run: Path, stage: int = 1) -> list[float]:
    lines = (run / f"stage{stage}" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def test_the_losses_are_the_same_on_one_process(run_file, two_processes):
    """The same rows in each step, so the same sums but for their order."""
    output = run_file.parent / "one-process"
    run_here(run_file.parent, "--stage", "1", f"output_dir={output}")
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)


def test_a_run_goes_on_with_another_number_of_processes(run_file, two_processes):
    output = run_file.parent / "moved"
    arguments = ["--stage", "1", f"output_dir={output}"]
    process = subprocess.Popen(soak.launch(2, run_file, *arguments))
    wait_for(output / "stage1" / "checkpoint-12" / "trainer_state.json", process)
    soak.kill(process)
    run_here(run_file.parent, *arguments, "--resume")
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers 5.17 cannot load an optimizer on the CPUs of two processes",
)
def test_three_kills_change_no_bit(run_file, two_processes):
    output = run_file.parent / "disturbed"
    within = soak.disturb(run_file, output, processes=2, kills=3, seed=1)
    assert soak.differences(two_processes, output) == []
    assert within >= 1


def test_a_run_divided_by_fsdp2_equals_one_that_is_not(run_file, two_processes):
    """Through a kill, too; and what it leaves opens without any of it."""
    output = run_file.parent / "divided"
    arguments = [fsdp_on_cpu.__file__, run_file, "--stage", "1", f"output_dir={output}"]
    command = accelerate("fsdp2-node.yaml", *arguments)
    process = subprocess.Popen(command, env=with_tests_on_the_path())
    wait_for(output / "stage1" / "checkpoint-12" / "trainer_state.json", process)
    soak.kill(process)
    subprocess.run([*command, "--resume"], check=True, env=with_tests_on_the_path())
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)
    of_the_whole = [run / "stage1" / "final" for run in (two_processes, output)]
    assert len({(folder / "config.json").read_bytes() for folder in of_the_whole}) == 1
    names = [{file.name for file in folder.iterdir()} for folder in of_the_whole]
    assert names[0] == names[1]
    weights, divided = (load_file(folder / "model.safetensors") for folder in of_the_whole)
    assert weights.keys() == divided.keys()
    for name in weights:
        torch.testing.assert_close(divided[name], weights[name], rtol=1e-3, atol=1e-4)
    (checkpoint,) = output.glob("stage1/checkpoint-32")
    assert names[0] - {"README.md", "training_log.json"} <= {f.name for f in checkpoint.iterdir()}


def test_fsdp2_under_bf16_adds_up_in_fp32(run_file, two_processes):
    """A loss of eight bits would differ by a hundredth."""
    output = run_file.parent / "divided-bf16"
    short = ["--stage", "1", "stage1.training.max_steps=4", "training.bf16=true"]
    arguments = [fsdp_on_cpu.__file__, run_file, *short, f"output_dir={output}"]
    command = accelerate("fsdp2-node.yaml", *arguments, "training.gradient_checkpointing=true")
    subprocess.run(command, check=True, env=with_tests_on_the_path())
    assert losses(output)[0] == pytest.approx(losses(two_processes)[0], rel=1e-4)


def test_two_nodes_of_two_processes_train_as_one_of_two(run_file, two_processes):
    """Two launchers that meet at an address, as two machines do."""
    output = run_file.parent / "nodes"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = ["--main_process_ip", "127.0.0.1", "--main_process_port", free.getsockname()[1]]
    training = [soak.ROOT / "train_mlm.py", run_file, "--stage", "1", f"output_dir={output}"]
    nodes = [
        subprocess.Popen(
            accelerate(
                *("ddp-nodes.yaml", "--num_machines", 2, "--machine_rank", rank, *meet, *training),
                processes=4,
            )
        )
        for rank in (0, 1)
    ]
    assert [node.wait() for node in nodes] == [0, 0]
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)
