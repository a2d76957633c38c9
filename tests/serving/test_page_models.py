"""Which model answers on the demo page: the export where there is one, torch until then."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from model_folders import SHAPE, save_with_tokenizer
from modeling_chinese_modernbert import ChineseModernBertForTokenClassification
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
    return page_models_made / "model-export"


@pytest.fixture
def embedding(page_models_made) -> Path:
    return page_models_made / "embedding"


@pytest.fixture
def exporting(monkeypatch) -> list[list[str]]:
    """Exporting takes no time: it copies what was exported before. Gives the commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        model = command[command.index("--model") + 1]
        shutil.copytree(f"{model}-export", command[command.index("--output") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(page_models.subprocess, "run", run)
    return commands


def test_torch_answers_until_the_exports_are_there(folder, embedding, exporting):
    models = Models(folder, embedding)
    for opened in (models.filling, models.vectors):
        assert opened.name == "PyTorch, fp32"
        assert "is being exported" in opened.note
    models.prepare_in_background().join(60)
    for opened in (models.filling, models.vectors):
        assert (opened.name, opened.note) == ("ONNX Runtime, int8", "")
    assert exporting[0][1:3] == ["-m", "serving.export"]
    models = Models(folder, embedding)  # kept for the next start
    assert (models.filling.name, models.waiting) == ("ONNX Runtime, int8", {})
    assert len(exporting) == 2


def test_an_export_that_fails_leaves_torch_and_says_so(folder, embedding, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nexport: no space left on device")
    monkeypatch.setattr(page_models.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="no space left"):
        page_models.export_into_cache(folder)
    models = Models(folder, embedding)
    models.prepare_in_background().join(60)
    assert models.filling.name == "PyTorch, fp32"
    assert "The export failed" in models.filling.note


def test_missing_packages_leave_torch_and_are_named(folder, embedding, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    models = Models(folder, embedding)
    assert models.filling.name == "PyTorch, fp32"
    assert "Not installed: onnx, onnxruntime, onnxscript" in models.filling.note
    assert models.waiting == {}


def test_an_export_without_int8_answers_in_fp32(folder, embedding, exported, tmp_path):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / FILES["onnx", True]).unlink()
    assert Models(folder, embedding, copy).filling.name == "ONNX Runtime, fp32"


def test_other_weights_or_settings_are_exported_anew(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert cached_export(copy) == cached_export(folder)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"norm_eps": 1e-3}))
    assert cached_export(copy) != cached_export(folder)
    (copy / "config.json").write_text(json.dumps(settings))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert cached_export(copy) != cached_export(folder)


def test_an_embedding_model_or_its_export_gives_the_vectors(folder, exported, embedding):
    with pytest.raises(ValueError, match=r"no modules\.json"):
        Models(folder, folder, exported)
    models = Models(folder, embedding, exported)
    assert models.waiting == {"vectors": embedding}
    assert models.vectors.runtime.vectors(TEXTS).shape == (2, 32)
    models = Models(folder, embedding.with_name("embedding-export"), exported)
    assert models.waiting == {}
    assert models.vectors.name == "ONNX Runtime, int8"


def test_entities_need_a_model_that_was_tuned_for_them(
    folder, embedding, exported, make_model, tmp_path
):
    with pytest.raises(ValueError, match="is a ForMaskedLM; entities need a ForTokenClass"):
        Models(folder, embedding, exported, entities=folder)
    tagger = make_model("eager", ChineseModernBertForTokenClassification, **SHAPE)
    tagger = save_with_tokenizer(tagger, tmp_path / "tagger")
    models = Models(folder, embedding, exported, tagger)
    found = models.entities(TEXTS[1])
    assert "".join(entity["word"] for entity in found) == TEXTS[1]


def test_a_model_that_fills_no_masks_is_refused(embedding, tmp_path):
    with pytest.raises(ValueError, match="fills need a masked language model"):
        Models(embedding, embedding)
    with pytest.raises(ValueError, match="is no model folder"):
        Models(tmp_path, embedding)
