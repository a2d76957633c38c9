"""The report of a model on held-out rows."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.preparation import Preparation
from pretraining.model_report import main, table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows of the example corpus, and an untrained model in a folder as training leaves it."""
    folder = tmp_path_factory.mktemp("report")
    corpus = [str(ROOT / "examples" / "corpus" / "valid.jsonl")]
    Preparation(corpus, ROOT / "tokenizer.json", 64, folder / "rows", separate_domains=True).run()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = ChineseModernBertConfig(num_attention_heads=2, **shape)
    ChineseModernBertForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def report(folder, monkeypatch, capsys):
    """Returns `report(*arguments)`: what the command prints of the folder's model and rows."""

    def report(*arguments: str) -> str:
        sides = ["--model", str(folder / "model"), "--eval", str(folder / "rows")]
        monkeypatch.setattr(sys, "argv", ["model_report", *sides, *arguments])
        main()
        return capsys.readouterr().out

    return report


def test_the_report_sets_a_model_beside_counting(folder, report):
    """Here the n-grams have counted the very rows, and the model knows nothing."""
    shown = report("--train", str(folder / "rows"))
    numbers = [float(n) for n in re.findall(r"[\d.]+", re.search(r"\| all \|.*", shown)[0])]
    right, bits = numbers[:3], numbers[3:]
    assert right[0] < right[2] < right[1]  # model, unigram, 5-gram
    assert bits[0] > bits[2] > bits[1]
    assert "| tokens 0-127 |" in shown


def test_rows_of_another_tokenizer_are_refused(folder, report):
    other = folder / "model" / "tokenizer.json"
    before = other.read_bytes()
    other.write_bytes(before.replace(b'"byte_fallback": true', b'"byte_fallback": false'))
    with pytest.raises(SystemExit, match="its rows were made with another tokenizer"):
        report()
    other.write_bytes(before)


def test_domains_come_before_places():
    figures = {
        f"{measure}{key}": 0.5
        for measure in ("masked_accuracy", "bits_per_character")
        for key in ("", "/tokens 0-127", "/law (hans)")
    }
    lines = table({"model": figures}).splitlines()
    assert lines[0] == "| held-out text | masked accuracy, model | bits per character, model |"
    assert lines[2:] == [
        "| all | 50.0 % | 0.50 |",
        "| law (hans) | 50.0 % | 0.50 |",
        "| tokens 0-127 | 50.0 % | 0.50 |",
    ]
