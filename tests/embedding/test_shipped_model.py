"""The embedding model that a clone brings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.model_folder import open_model_folder

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "models/embedding"

SCRIPT = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer

texts = ["图书馆几点关门？", "图书馆晚上什么时候闭馆？", "今天的面条很好吃。"]
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], model.encode(texts, show_progress_bar=False))
"""


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> np.ndarray:
    """Of a question, the same one in other words, and another sentence; in a fresh process."""
    file = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    command = [sys.executable, "-c", SCRIPT, str(FOLDER), str(file)]
    run = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "newly initialized" not in run.stderr
    return np.load(file)


def test_it_opens_as_it_is(vectors):
    assert vectors.shape == (3, 768)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_what_means_the_same_is_near(vectors):
    similar, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert similar > other + 0.3


def test_the_page_and_the_export_can_open_it():
    assert open_model_folder(FOLDER).pooling.normalized


def test_it_has_the_code_and_the_tokenizer_of_the_root_and_is_small():
    for name in ("*_chinese_modernbert.py", "tokenizer*.json"):
        for file in ROOT.glob(name):
            assert (FOLDER / file.name).resolve() == file.resolve()
    weights = sum(file.stat().st_size for file in FOLDER.rglob("*.safetensors"))
    assert weights <= 60 << 20
