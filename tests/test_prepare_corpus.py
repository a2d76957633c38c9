"""Preparation: from text to rows that hold all of it, or to a clear message and nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pretraining.corpus import CorpusError
from pretraining.prepare_corpus import prepare
from pretraining.rows import RowsError, open_rows, split_row

TOKENIZER = Path(__file__).parent.parent / "tokenizer.json"
TEXTS = [
    "早市六点开门，卖菜的人比买菜的人来得更早。",
    "姐姐學會了騎自行車，摔了三次，第四次就騎穩了。" * 10,
    "读完这一页，把灯关上。",
]


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def run(corpus: Path, output: Path, workers: int = 1) -> dict:
    return prepare([str(corpus)], TOKENIZER, 64, output, workers)


def test_rows_hold_the_texts_and_the_manifest_says_what_they_are(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "rows")
    rows = open_rows(tmp_path / "rows")
    assert manifest == rows.manifest
    assert (manifest["documents"], manifest["characters"]) == (3, sum(map(len, TEXTS)))
    ids, starts = split_row(np.stack([rows[index] for index in range(len(rows))]))
    assert manifest["padding_share"] == pytest.approx((ids == 0).mean())
    assert manifest["tokens"] == (ids >= manifest["first_ordinary_id"]).sum()
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    pieces = [
        tokenizer.decode(piece[1:-1].tolist())
        for row in ids
        for piece in np.split(row[row != 0], np.flatnonzero(row[row != 0] == 2)[1:])
    ]
    assert TEXTS[0] in pieces
    assert TEXTS[2] in pieces
    assert sum(map(len, pieces)) == sum(map(len, TEXTS))
    assert not starts[np.isin(ids, [0, 2, 3])].any()


def test_the_number_of_workers_does_not_change_the_rows(corpus, tmp_path):
    one, two = run(corpus, tmp_path / "one", 1), run(corpus, tmp_path / "two", 2)
    assert one["shards"] == two["shards"]


def test_a_bad_line_stops_the_work_and_leaves_nothing(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"\n{broken\n")
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 4: not a JSON object"):
        run(corpus, tmp_path / "rows")
    assert sorted(tmp_path.iterdir()) == [corpus]


def test_an_existing_output_is_kept(corpus, tmp_path):
    run(corpus, tmp_path / "rows")
    with pytest.raises(RowsError, match="rows exists already"):
        run(corpus, tmp_path / "rows")


def test_a_tokenizer_without_the_special_tokens_is_refused(corpus, tmp_path):
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    content["model"]["vocab"]["[mask]"] = content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = content["added_tokens"][:4]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"special tokens \['\[MASK\]'\] are missing"):
        prepare([str(corpus)], other, 64, tmp_path / "rows", 1)
