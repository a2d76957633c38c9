"""A model folder in files of at most 15 MiB: its weights in parts, everything else in one archive.

`parts.json` has their checksums, by which `join` finds out whether all of them arrived.
"""

import hashlib
import shutil
import tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pretraining.files import new_folder, read_json, replacing, sha256_of, write_json

MIB = 1 << 20
PART = 15 * MIB
MOST_PARTS = 4  # of eight files that come back: beside them archive, index, and log or report

WEIGHTS, ARCHIVE, INDEX = "model.safetensors", "folder.tar.xz", "parts.json"


def check_fits(weight_bytes: int) -> None:
    """Checks that weights will fit, before they are trained.

    Raises:
        ValueError: if they will not.
    """
    if weight_bytes > MOST_PARTS * PART:
        raise ValueError(
            f"the model's weights would take {weight_bytes / MIB:.1f} MiB in bf16, and "
            f"{MOST_PARTS * PART / MIB:.0f} MiB come back; choose a smaller model."
        )


def round_to_bf16(model: Path) -> None:
    """Rounds the weights of a model folder to bf16."""
    weights = load_file(model / WEIGHTS)
    with replacing(model / WEIGHTS) as temporary:
        rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        save_file(rounded, temporary, metadata={"format": "pt"})
    write_json(model / "config.json", read_json(model / "config.json") | {"dtype": "bfloat16"})


def split(model: Path, output: Path, facts: dict) -> None:
    """Writes a model folder into parts, in place of those of an earlier call.

    They are made beside the model and then moved one after the other, `parts.json` last: if that is
    interrupted, `join` finds parts that are not those of `parts.json`.

    Args:
        model: a folder with `model.safetensors`.
        facts: what `parts.json` says besides, such as how it was trained.
    """
    made = model.with_name(f"{model.name}.parts")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    parts = []
    with open(model / WEIGHTS, "rb") as weights:
        while content := weights.read(PART):
            name = f"weights-{len(parts)}"
            (made / name).write_bytes(content)
            parts.append({"file": name, "sha256": hashlib.sha256(content).hexdigest()})
    with tarfile.open(made / ARCHIVE, "w:xz") as archive:
        for file in sorted(model.iterdir()):
            if file.name != WEIGHTS:
                archive.add(file, file.name)
    index = {
        "weights": sha256_of(model / WEIGHTS),
        "archive": sha256_of(made / ARCHIVE),
        "parts": parts,
        **facts,
    }
    write_json(made / INDEX, index)
    output.mkdir(parents=True, exist_ok=True)
    for name in (*(part["file"] for part in parts), ARCHIVE, INDEX):
        shutil.move(made / name, output / name)
    made.rmdir()


def join(parts: Path, model: Path) -> dict:
    """Puts the parts together to a model folder, which appears once it is complete.

    Returns:
        The content of `parts.json`.

    Raises:
        OSError, ValueError: if a part is missing or damaged, or `model` exists; the message names
            the file.
    """
    if model.exists():
        raise ValueError(f"{model} exists already; remove it or choose another folder.")
    index = read_json(parts / INDEX)
    for name, expected in [
        *((part["file"], part["sha256"]) for part in index["parts"]),
        (ARCHIVE, index["archive"]),
    ]:
        if not (parts / name).exists():
            raise ValueError(f"{parts / name}: missing; copy the folder again.")
        if sha256_of(parts / name) != expected:
            raise ValueError(f"{parts / name}: damaged, its SHA-256 is not that of {INDEX}.")
    with new_folder(model) as folder:
        with tarfile.open(parts / ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        with open(folder / WEIGHTS, "wb") as weights:
            for part in index["parts"]:
                weights.write((parts / part["file"]).read_bytes())
        if sha256_of(folder / WEIGHTS) != index["weights"]:
            raise ValueError(f"{parts}: the parts do not make up the weights of {INDEX}.")
    return index
