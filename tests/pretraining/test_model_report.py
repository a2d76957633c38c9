"""The report of a model on held-out rows."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from commands import run_main
from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import IGNORED
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining import model_report
from pretraining.data.preparation import Preparation
from pretraining.data.rows import open_rows
from pretraining.model_report import Report, everyday_first, predict
from pretraining.run.evaluation import EvaluationRows, evaluation_collator, reduce_logits
from pretraining.run.figures import MaskedTokens

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
def report(folder, capsys):
    """Returns `report(*arguments)`: what the command prints of the folder's model and rows."""

    def report(*arguments: str) -> str:
        run_main(model_report, "--model", folder / "model", "--eval", folder / "rows", *arguments)
        return capsys.readouterr().out

    return report


def test_the_report_sets_a_model_beside_counting(folder, report):
    """Here the n-grams have counted the very rows, and the model knows nothing."""
    shown = report("--train", str(folder / "rows"))
    line = re.search(r"\| all \| \d+ \|.*", shown)[0]
    figures = [float(figure) for figure in re.findall(r"([\d.]+) ±", line)]
    right, bits = figures[:3], figures[3:]
    assert right[0] < right[2] < right[1]  # model, unigram, 5-gram
    assert bits[0] > bits[2] > bits[1]
    assert "| tokens 0-127 |" in shown and "| documents of 33-64 tokens |" in shown


@pytest.mark.parametrize("embedding_size", [None, 16])
def test_predictions_are_those_of_the_whole_logits(folder, embedding_size, tmp_path):
    rows = open_rows(folder / "rows")
    collator = evaluation_collator(rows)
    features = EvaluationRows(rows)
    batch = collator([features[index] for index in range(len(rows))])
    config = ChineseModernBertConfig.from_pretrained(
        folder / "model", embedding_size=embedding_size
    )
    model = ChineseModernBertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        logits = model(**batch).logits
    masked = batch["labels"] != IGNORED
    wanted = reduce_logits(logits, batch["labels"])[masked].numpy()
    # Batches of another size round differently.
    assert predict(tmp_path, rows, collator) == pytest.approx(wanted, rel=1e-4)


def test_each_row_set_gets_a_table(folder, report):
    copy = shutil.copytree(folder / "rows", folder / "again")
    shown = report("--eval", str(folder / "rows"), str(copy))
    first, second = re.findall(r"^\| (?:rows|again) \|(.*?)^Characters", shown, re.M | re.S)
    assert first == second
    assert "pin_memory" not in shown


def test_sentences_alone_are_compared_on_the_same_tokens(report):
    shown = report("--sentences")
    head, *lines = shown[shown.index("| rows, sentences |") :].split("\n\n")[0].splitlines()
    assert head.endswith(
        "| masked tokens | masked accuracy, alone | masked accuracy, among others "
        "| bits per character, alone | bits per character, among others |"
    )
    tokens = {line.split(" | ")[0][2:]: int(line.split(" | ")[1]) for line in lines[1:]}
    assert tokens["all"] == sum(n for name, n in tokens.items() if name.startswith("sentences of"))
    assert "of the accuracy that its words have among others" in shown


def test_rows_without_sentences_among_others_are_refused(report, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "今天没有课，我们去河边走走。"}\n', encoding="utf-8")
    Preparation([str(corpus)], ROOT / "tokenizer.json", 64, tmp_path / "alone").run()
    with pytest.raises(SystemExit, match=r"alone: no masked token.*leave --sentences out"):
        report("--eval", str(tmp_path / "alone"), "--sentences")


def test_rows_in_which_nothing_is_masked_are_named(report, tmp_path, folder):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "好"}\n', encoding="utf-8")
    Preparation([str(corpus)], ROOT / "tokenizer.json", 64, tmp_path / "short").run()
    with pytest.raises(SystemExit, match=r"short: no token is masked"):
        report("--eval", str(tmp_path / "short"), "--train", str(folder / "rows"))


def test_rows_of_another_tokenizer_are_refused(folder, report):
    other = folder / "model" / "tokenizer.json"
    before = other.read_bytes()
    other.write_bytes(before.replace(b'"byte_fallback": true', b'"byte_fallback": false'))
    with pytest.raises(SystemExit, match="its rows were made with another tokenizer"):
        report()
    other.write_bytes(before)


def test_everyday_domains_come_first():
    domains = {f"/{name}": np.array([True]) for name in ("law (hans)", "news (yue)", "qa (hans)")}
    assert list(everyday_first(domains)) == ["/news (yue)", "/qa (hans)", "/law (hans)"]


def test_a_table_gives_tokens_and_errors():
    """Two documents of two tokens each; the error of a single one is unknown."""
    tokens = MaskedTokens(
        labels=np.array([5, 6, 7, 8]),
        predicted=np.array([5, 6, 7, 9]),
        nats=np.log(2) * np.array([1, 1, 2, 2]),
        characters=np.array([1, 1, 1, 1]),
        documents=np.array([1, 1, 2, 2]),
    )
    groups = {"/law (hans)": np.array([True, True, False, False])}
    lines = Report("text", {"model": tokens}, groups).table().splitlines()
    assert lines == [
        "| text | masked tokens | masked accuracy, model | bits per character, model |",
        "|---|--:|--:|--:|",
        "| all | 4 | 75.0 ± 25.0 % | 1.50 ± 0.50 |",
        "| law (hans) | 2 | 100.0 ± – % | 1.00 ± – |",
    ]
