"""A tiny encoder."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_encoder(make_model, tmp_path_factory) -> Path:
    """A folder with a tiny encoder and the root's tokenizer. Not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(vocab_size=32_000).save_pretrained(folder)
    for file in (*ROOT.glob("*_chinese_modernbert.py"), *ROOT.glob("tokenizer*.json")):
        shutil.copy(file, folder)
    return folder
