"""Folders of tiny models, as a page or an export opens them."""

import json
import shutil
from pathlib import Path

import pytest

from commands import run_main

# As small as a model can be: every length up to the longest is checked when it is exported.
SHAPE = {
    "vocab_size": 32_000,
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "max_position_embeddings": 200,
}
ROOT = Path(__file__).resolve().parent.parent


def save_with_tokenizer(model, folder: Path) -> Path:
    """Writes a model and the tokenizer at the root."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenization_chinese_modernbert.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def make_embedding_model(folder: Path) -> Path:
    """Turns the folder of an encoder into one of an embedding model: the first token's state."""
    modules = [
        {"idx": number, "path": path, "type": f"st.{path[2:] or 'Transformer'}"}
        for number, path in enumerate(("", "1_Pooling"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    return folder


def run_export(*arguments) -> None:
    """Runs `serving.export`, with its timing as short as it can be."""
    from serving import export, export_check  # not for the tests of attention on a GPU's image

    short = {"milliseconds": (1, 9, 1), "tokens_per_second": (2, 9, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_check, "SPEEDS", short)
        run_main(export, *arguments)
