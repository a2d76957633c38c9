"""Shared by the tests of the demo page: tiny models and their exports, made once."""

from pathlib import Path

import pytest

from model_folders import SHAPE, make_embedding_model, run_export, save_with_tokenizer
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel


@pytest.fixture(scope="session")
def page_models_made(made_once, make_model) -> Path:
    """A folder with `model`, a masked language model, `embedding`, and the exports of both."""

    def make(folder: Path) -> None:
        model = make_model("eager", ChineseModernBertForMaskedLM, **SHAPE)
        save_with_tokenizer(model, folder / "model")
        encoder = make_model("eager", ChineseModernBertModel, seed=1, **SHAPE)
        make_embedding_model(save_with_tokenizer(encoder, folder / "embedding"))
        for name in ("model", "embedding"):
            export_as_the_page_does(folder / name, folder / f"{name}-export")

    def export_as_the_page_does(model: Path, output: Path) -> None:
        run_export("--model", model, "--output", output, "--formats", "onnx", "--int8")

    return made_once("page-models", make)
