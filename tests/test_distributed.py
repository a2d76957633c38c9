"""One run on any number of processes, and through kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sharded_step
import soak


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    return soak.write_run(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def two_processes(run_file) -> Path:
    """Both stages with two processes, undisturbed."""
    subprocess.run(soak.launch(2, run_file), check=True)
    return run_file.parent / "run"


def losses(run: Path, stage: int = 1) -> list[float]:
    lines = (run / f"stage{stage}" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.parametrize("processes", [1, 4])
def test_the_losses_are_the_same_on_any_number_of_processes(run_file, two_processes, processes):
    """The same rows in each step, so the same sums but for their order."""
    output = run_file.parent / f"processes-{processes}"
    command = soak.launch(processes, run_file, "--stage", "1", f"output_dir={output}")
    subprocess.run(command, check=True)
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)


def test_a_run_goes_on_with_another_number_of_processes(run_file, two_processes):
    output = run_file.parent / "moved"
    arguments = ["--stage", "1", f"output_dir={output}"]
    process = subprocess.Popen(soak.launch(2, run_file, *arguments))
    while not (output / "stage1" / "checkpoint-12" / "trainer_state.json").exists():
        assert process.poll() is None
    soak.kill(process)
    subprocess.run(soak.launch(1, run_file, *arguments, "--resume"), check=True)
    assert losses(output) == pytest.approx(losses(two_processes), rel=2e-5)


def test_three_kills_change_no_bit(run_file, two_processes):
    output = run_file.parent / "disturbed"
    within = soak.disturb(run_file, output, processes=2, kills=3, seed=1)
    assert soak.differences(two_processes, output) == []
    assert within >= 1


def test_steps_sharded_by_fsdp2_equal_steps_that_are_not(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script, file = Path(sharded_step.__file__), tmp_path / "sharded.pt"
    environment = os.environ | {"PYTHONPATH": f"{soak.ROOT}{os.pathsep}{script.parent}"}
    subprocess.run([sys.executable, *torchrun, script, file], check=True, env=environment)
    sharded = torch.load(file)
    model = sharded_step.fresh_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    norms = sharded_step.train(model, rank=0, world_size=1)
    assert sharded["norms"] == pytest.approx(norms, rel=1e-5)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(sharded["weights"][name], weight, rtol=1e-4, atol=1e-5)
        assert not torch.equal(before[name], weight)
