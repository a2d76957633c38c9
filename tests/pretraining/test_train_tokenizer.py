"""The command that trains a tokenizer."""

import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from commands import run_main
from pretraining import train_tokenizer
from pretraining.data.tokens import first_ordinary_id
from pretraining.tokenizer.training import smallest_size

SENTENCES = [
    "小明每天早上骑自行车去学校。",
    "學校附近有一家賣豆漿的小店。",
    "店主姓陈，待人和气，做事麻利。\n\n    他早起磨豆子。",
]
SMALLEST = smallest_size()


run = partial(run_main, train_tokenizer)


def test_the_command_reads_any_corpus_and_reports(tmp_path, capsys):
    texts = [f"{text}\n\n    " * 20 for text in SENTENCES]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "lines.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "marked.jsonl").write_text(f"\ufeff{lines}", encoding="utf-8")
    pq.write_table(pa.table({"text": texts[::-1]}), tmp_path / "table.parquet")
    bert = "".join(f"{each}\n" for each in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "小", "明", "。"))
    (tmp_path / "vocab.txt").write_text(bert, encoding="utf-8")
    size = SMALLEST + 16
    for corpus, output in (("marked.jsonl", "one"), ("table.parquet", "two")):
        run(
            *("--corpus", tmp_path / corpus, "--output", tmp_path / output),
            *("--vocab_size", size, "--report", tmp_path / "lines.jsonl"),
            *("--beside", tmp_path / "vocab.txt"),
        )
    first, second = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert first_ordinary_id(Tokenizer.from_file(str(first))) == 325
    assert not list(tmp_path.glob("*/.*"))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0].startswith(f"| domain, script | characters | {size:,} entries |")
    simplified, traditional = len(texts[0]) + len(texts[2]), len(texts[1])
    assert [line.split(" | ")[:2] for line in table[2 : len(table) // 2]] == [
        ["| unknown, hans", f"{simplified:,}"],
        ["| unknown, hant", f"{traditional:,}"],
        ["| all", f"{simplified + traditional:,}"],
    ]


@pytest.mark.parametrize("size", [SMALLEST, 32_769])
def test_a_size_that_cannot_be_is_refused_before_any_work(capsys, size):
    with pytest.raises(SystemExit):
        run("--corpus", "nowhere", "--output", "nowhere", "--vocab_size", size)
    assert f"must be more than {SMALLEST} and at most 32768" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere.jsonl"], "nowhere.jsonl: no corpus file there"),
        (["--corpus", "nowhere.jsonl", "--beside", "no_vocab.txt"], "no_vocab.txt"),
    ],
)
def test_what_is_missing_is_named(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(*arguments, "--output", tmp_path)
