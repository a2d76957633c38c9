"""Which model answers on the demo page: the export where there is one, torch until then."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conftest import SHAPE, save_with_tokenizer
from modeling_chinese_modernbert import (
    ChineseModernBertForTokenClassification,
    ChineseModernBertModel,
)
from serving import page_models
from serving.page_models import Models, cached_export
from serving.runtime import FILES

TEXTS = ["今天下雨。", "明天去河边划船，后天回家。"]


@pytest.fixture
def folder(page_models_made, monkeypatch, tmp_path) -> Path:
    """A masked language model; the cache is empty."""
    monkeypatch.setattr(page_models, "HF_HOME", str(tmp_path / "cache"))
    return page_models_made / "model"


@pytest.fixture
def exported(page_models_made) -> Path:
    return page_models_made / "export"


@pytest.fixture
def exporting(exported, monkeypatch) -> list[list[str]]:
    """Exporting takes no time: it copies what was exported before. Gives the commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        shutil.copytree(exported, command[command.index("--output") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(page_models.subprocess, "run", run)
    return commands


def test_torch_answers_until_the_export_is_there(folder, exporting):
    models = Models(folder)
    assert models.filling.name == "PyTorch, fp32"
    assert "is being exported" in models.filling.note
    models.prepare_in_background().join(60)
    assert (models.filling.name, models.filling.note) == ("ONNX Runtime, int8", "")
    assert exporting[0][1:3] == ["-m", "serving.export"]
    assert Models(folder).filling.name == "ONNX Runtime, int8"  # kept for the next start
    assert len(exporting) == 1


def test_an_export_that_fails_leaves_torch_and_says_so(folder, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nexport: no space left on device")
    monkeypatch.setattr(page_models.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="no space left"):
        page_models.export_into_cache(folder)
    models = Models(folder)
    models.prepare_in_background().join(60)
    assert models.filling.name == "PyTorch, fp32"
    assert "The export failed" in models.filling.note


def test_missing_packages_leave_torch_and_are_named(folder, monkeypatch):
    monkeypatch.setattr(page_models.importlib.util, "find_spec", lambda name: None)
    models = Models(folder)
    assert models.filling.name == "PyTorch, fp32"
    assert "Not installed: onnx, onnxruntime, onnxscript" in models.filling.note
    assert models.waiting == {}


def test_an_export_without_int8_answers_in_fp32(folder, exported, tmp_path):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / FILES["onnx", True]).unlink()
    assert Models(folder, copy).filling.name == "ONNX Runtime, fp32"


def test_other_weights_or_settings_are_exported_anew(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert cached_export(copy) == cached_export(folder)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"norm_eps": 1e-3}))
    assert cached_export(copy) != cached_export(folder)


def test_without_an_embedding_model_vectors_are_means_and_it_is_said(folder, exported):
    models = Models(folder, exported)
    assert "never trained for similarity" in models.vectors.note
    vectors = models.vectors.runtime.vectors(TEXTS)
    assert vectors.shape == (2, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(2), abs=1e-5)


def test_an_embedding_model_gives_the_vectors(folder, exported, make_model, tmp_path):
    encoder = make_model("eager", ChineseModernBertModel, seed=1, **SHAPE)
    embedding = save_with_tokenizer(encoder, tmp_path / "embedding")
    with pytest.raises(ValueError, match=r"no modules\.json"):
        Models(folder, exported, embedding)
    modules = [
        {"idx": number, "path": path, "type": f"st.{path[2:] or 'Transformer'}"}
        for number, path in enumerate(("", "1_Pooling"))
    ]
    (embedding / "modules.json").write_text(json.dumps(modules))
    (embedding / "1_Pooling").mkdir()
    (embedding / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    models = Models(folder, exported, embedding)
    assert "never trained" not in models.vectors.note
    assert models.waiting == {"vectors": embedding}
    assert models.vectors.runtime.vectors(TEXTS).shape == (2, 32)


def test_entities_need_a_model_that_was_tuned_for_them(folder, exported, make_model, tmp_path):
    with pytest.raises(ValueError, match="is a ForMaskedLM; entities need a ForTokenClass"):
        Models(folder, exported, entities=folder)
    tagger = make_model("eager", ChineseModernBertForTokenClassification, **SHAPE)
    models = Models(folder, exported, entities=save_with_tokenizer(tagger, tmp_path / "tagger"))
    found = models.entities(TEXTS[1])
    assert "".join(entity["word"] for entity in found) == TEXTS[1]


def test_a_model_that_fills_no_masks_is_refused(folder, make_model, tmp_path):
    encoder = make_model("eager", ChineseModernBertModel, **SHAPE)
    with pytest.raises(ValueError, match="fills need a masked language model"):
        Models(save_with_tokenizer(encoder, tmp_path / "encoder"))
    with pytest.raises(ValueError, match="is no model folder"):
        Models(tmp_path)
