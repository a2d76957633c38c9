"""Which model answers on the demo page: the export where there is one, torch until then."""

import shutil
import subprocess
from pathlib import Path

import pytest

from serving import page_models
from serving.page_models import Models

TEXTS = ["今天下雨。", "明天去河边划船，后天回家。"]


@pytest.fixture
def model(page_models, tmp_path, monkeypatch) -> Path:
    """The model, with a cache of its own that is empty."""
    monkeypatch.setattr("serving.page_models.HF_HOME", str(tmp_path / "cache"))
    return page_models / "model"


@pytest.fixture
def exporting(page_models, monkeypatch):
    """Lets the command that exports take a second less: it copies what was exported before."""

    def run(command, **_):
        output = Path(command[command.index("--output") + 1])
        shutil.copytree(page_models / "export", output)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(page_models_module(), "subprocess", type("", (), {"run": run}))


def page_models_module():
    return page_models


def test_torch_answers_until_the_export_is_there(model, exporting):
    models = Models(model)
    assert models.filling.name == "PyTorch, fp32"
    assert "is being exported" in models.filling.note
    models.prepare_in_background().join(60)
    assert (models.filling.name, models.filling.note) == ("ONNX Runtime, int8", "")
    assert Models(model).filling.name == "ONNX Runtime, int8"  # it is kept
