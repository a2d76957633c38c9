"""Shared by the tests of the demo page: tiny models and their exports, made once."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel
from serving import export, export_check

# As small as a model can be: every length up to the longest is checked when it is exported.
SHAPE = {
    "vocab_size": 32_000,
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "max_position_embeddings": 200,
}
ROOT = Path(__file__).resolve().parent.parent.parent


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
        command = ["export", "--model", model, "--output", output]
        command += ["--formats", "onnx", "--int8"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                export_check, "SPEEDS", {"milliseconds": (1, 9, 1), "tokens_per_second": (2, 9, 1)}
            )
            patch.setattr(sys, "argv", list(map(str, command)))
            export.main()

    return made_once("page-models", make)
