"""The command that reports on a tokenizer."""

import sys

import pytest

from corpora import TEXTS, TOKENIZER, write_corpus
from pretraining import tokenizer_report


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenizer_report", *map(str, arguments)])
    tokenizer_report.main()


def test_the_command_prints_a_table(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    run(monkeypatch, "--tokenizer", TOKENIZER.parent, "--corpus", corpus)
    table = capsys.readouterr().out
    assert "| 32,000 entries |" in table
    assert table.splitlines()[-3].startswith(f"| all | {sum(map(len, TEXTS))} | ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere.jsonl"], "nowhere.jsonl: no corpus file there"),
        (["--corpus", "x", "--beside", "no_vocab.txt"], "no_vocab.txt"),
        (["--corpus", "x", "--tokenizer", "nowhere"], "nowhere/tokenizer.json: no such tokenizer"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--tokenizer", TOKENIZER.parent, *arguments)
