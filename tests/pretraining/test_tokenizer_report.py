"""The command that reports on a tokenizer."""

import codecs
import sys

import pytest

from corpora import TEXTS, TOKENIZER, write_corpus
from pretraining import tokenizer_report


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenizer_report", *map(str, arguments)])
    tokenizer_report.main()


def test_the_command_prints_the_same_table_with_and_without_a_byte_order_mark(
    tmp_path, monkeypatch, capsys
):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    tables = []
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / "tokenizer.json").write_bytes(mark + TOKENIZER.read_bytes())
        run(monkeypatch, "--tokenizer", tmp_path, "--corpus", corpus)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "| 32,000 entries |" in tables[0]
    assert tables[0].splitlines()[-3].startswith(f"| all | {sum(map(len, TEXTS))} | ")


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
