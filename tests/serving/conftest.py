"""Shared by the tests of the demo page: a tiny model and its export, made once."""

import shutil
import sys
from pathlib import Path

import pytest

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
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


@pytest.fixture(scope="session")
def page_models_made(made_once, make_model) -> Path:
    """A folder with `model`, a masked language model, and `export`, as the page makes it."""

    def make(folder: Path) -> None:
        model = make_model("eager", ChineseModernBertForMaskedLM, **SHAPE)
        save_with_tokenizer(model, folder / "model")
        command = ["export", "--model", folder / "model", "--output", folder / "export"]
        command += ["--formats", "onnx", "--int8"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                export_check, "SPEEDS", {"milliseconds": (1, 9, 1), "tokens_per_second": (2, 9, 1)}
            )
            patch.setattr(sys, "argv", list(map(str, command)))
            export.main()

    return made_once("page-models", make)
