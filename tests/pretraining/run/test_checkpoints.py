"""Which checkpoint a run continues from: the newest that is whole."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretraining.run.complete_checkpoints import last_complete_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def stage(tmp_path) -> Path:
    """Two whole checkpoints, at steps 9 and 100."""
    for step in (9, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.ones(100)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"state": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text('{"global_step": 9}', encoding="utf-8")
    return tmp_path


def test_the_newest_is_taken(stage):
    assert last_complete_checkpoint(stage) == str(stage / "checkpoint-100")


def test_a_copy_under_another_name_is_passed_over_and_named(stage, capsys):
    newest = last_complete_checkpoint(stage)
    shutil.copytree(newest, f"{newest}-copy")
    assert last_complete_checkpoint(stage) == newest
    assert f"{newest}-copy does not end in a step" in capsys.readouterr().out


def test_without_one_the_stage_starts_anew(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_one_that_is_cut_off_is_passed_over_and_named(stage, capsys, name, kept):
    file = stage / "checkpoint-100" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert last_complete_checkpoint(stage) == str(stage / "checkpoint-9")
    assert f"checkpoint-100 is incomplete ({name})" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
)
def test_one_without_its_weights_or_state_is_passed_over(stage, name):
    (stage / "checkpoint-100" / name).unlink()
    assert last_complete_checkpoint(stage) == str(stage / "checkpoint-9")


def test_where_none_is_whole_the_stage_starts_anew(stage):
    for folder in stage.iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    assert last_complete_checkpoint(stage) is None
