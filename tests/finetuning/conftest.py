"""A tiny model folder."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A repository as the root is one, but with a tiny configuration and without weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for file in (*ROOT.glob("*_chinese_modernbert.py"), *ROOT.glob("tokenizer*.json")):
        shutil.copy(file, folder)
    config = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 2, "layer_types": config["layer_types"][:2]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
