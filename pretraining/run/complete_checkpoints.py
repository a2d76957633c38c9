"""The newest of Trainer's checkpoints that was written to its end."""

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pretraining.files import read_json


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None."""
    checkpoints = []
    for each in folder.glob("checkpoint-*"):
        if _step_of(each).isdecimal():
            checkpoints.append(each)
        else:
            print(
                f"{each} does not end in a step and is passed over. Move it elsewhere: Trainer may "
                "delete it for a checkpoint, or keep it in place of one."
            )
    for checkpoint in sorted(checkpoints, key=lambda each: int(_step_of(each)), reverse=True):
        if missing := _what_is_incomplete(checkpoint):
            print(f"{checkpoint} is incomplete ({missing}), looking for the one before it")
        else:
            return str(checkpoint)
    return None


def _step_of(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def _what_is_incomplete(checkpoint: Path) -> str | None:
    """The name of a file that is missing or cut off, or None.

    Trainer writes trainer_state.json last, so that one tells of a kill in mid-write; a disk that
    was full or a copy that broke off can have cut any of the others.
    """
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return "trainer_state.json"
    weights = list(checkpoint.glob("*.safetensors"))
    if not weights and not (checkpoint / "pytorch_model_fsdp.bin").exists():
        return "model.safetensors"
    if not (checkpoint / "scheduler.pt").exists():
        return "scheduler.pt"
    if not any(checkpoint.glob("optimizer*")):
        return "optimizer.pt"
    for file in weights:
        try:
            with safe_open(file, framework="pt"):  # reads the header and compares the length
                pass
        except (OSError, SafetensorError):
            return file.name
    # torch.save writes zip archives, whose directory is at their end.
    saved = [each for suffix in ("pt", "pth", "bin") for each in checkpoint.glob(f"*.{suffix}")]
    return next((file.name for file in saved if not zipfile.is_zipfile(file)), None)
