"""Small corpora of our own, and preparing rows of them."""

import collections
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_collator_wwm import split_row
from pretraining.data.executors import Execution
from pretraining.data.preparation import Preparation
from pretraining.data.rows import open_rows

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "tokenizer.json"
TEXTS = [
    "早市六点开门，卖菜的人比买菜的人来得更早。",
    "姐姐學會了騎自行車，摔了三次，第四次就騎穩了。" * 10,
    "读完这一页，把灯关上。",
]
_PLACES = ("河边", "山上", "镇里", "桥头", "院子里")
_THINGS = ("杏树", "石磨", "木船", "水井", "茶摊", "旧书店", "修车铺", "小学校")


def many_texts(number: int) -> list[str]:
    """Texts that differ from each other, none near another."""
    draw = np.random.default_rng(0)
    return [
        "".join(
            f"{draw.choice(_PLACES)}的{draw.choice(_THINGS)}有{draw.integers(10**6)}年了。"
            for _ in range(draw.integers(3, 12))
        )
        for _ in range(number)
    ]


def write_corpus(file: Path, texts: list[str], **fields) -> Path:
    """Writes texts as JSON lines with further fields."""
    lines = (json.dumps({"text": text, **fields}, ensure_ascii=False) for text in texts)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def prepare(corpus: Path, output: Path, workers: int = 1, **settings) -> dict:
    """Prepares rows on this machine, of 64 tokens unless told otherwise; returns the manifest."""
    settings = {"tokenizer_file": TOKENIZER, "seq_len": 64, **settings}
    return Preparation([str(corpus)], output=output, **settings).run(Execution(workers=workers))


def texts_of(folder: Path) -> collections.Counter:
    """The pieces of text in a row set."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    rows = open_rows(folder)
    pieces = []
    for index in range(len(rows)):
        ids, _ = split_row(rows[index])
        ids = ids[ids != 0]
        pieces += np.split(ids, np.flatnonzero(ids == 2)[1:])
    return collections.Counter(tokenizer.decode(piece[1:-1].tolist()) for piece in pieces)


def shards_of(folder: Path) -> dict[str, bytes]:
    """The content of each shard of a row set."""
    return {each.name: each.read_bytes() for each in folder.glob("*.arrow")}
