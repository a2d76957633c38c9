"""The command that reports on a tokenizer."""

from functools import partial

import pytest

from commands import run_main
from corpora import TEXTS, TOKENIZER, write_corpus
from pretraining import tokenizer_report

run = partial(run_main, tokenizer_report, "--tokenizer", TOKENIZER.parent)


def test_the_command_prints_a_table(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    run("--corpus", corpus)
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
def test_what_is_missing_is_named(arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
