"""Held-out sentences alone: the same tokens, the same masks, other documents."""

from types import SimpleNamespace

import numpy as np
import pytest

from corpora import TOKENIZER
from data_collator_wwm import IGNORED
from pretraining.data.encoding import Encoder
from pretraining.data.rows import Rows, open_rows, write_manifest, write_shards
from pretraining.data.tokens import first_ordinary_id, special_token_ids
from pretraining.run.evaluation import EvaluationRows, evaluation_collator
from pretraining.run.held_out_groups import token_places
from pretraining.run.sentences_alone import SentenceEnds, SentencesAlone, sentence_places

TEXTS = [
    "他问：“你带伞了吗？”我说没带。雨下得很大！！我们只好等",
    "今天没有课。",
    "晚饭吃面条。\n饭后去河边走走。",
]
SENTENCES = [
    *("他问：“你带伞了吗？”", "我说没带。", "雨下得很大！！", "我们只好等"),
    "今天没有课。",
    *("晚饭吃面条。\n", "饭后去河边走走。"),
]
LENGTH = 48


@pytest.fixture(scope="module")
def text():
    """The texts as rows, the first two in one, and the tokenizer."""
    encoder = Encoder(TOKENIZER)
    special = special_token_ids(encoder.tokenizer)
    framed = [
        np.concatenate(([special["cls_id"]], ids, [special["sep_id"]])).astype(np.uint16)
        for ids in encoder.encode(TEXTS)
    ]
    rows = [np.concatenate(framed[:2]), framed[2]]
    padded = [
        np.pad(row, (0, LENGTH - len(row)), constant_values=special["pad_id"]) for row in rows
    ]
    return SimpleNamespace(rows=padded, tokenizer=encoder.tokenizer, special=special)


@pytest.fixture
def rows(text, tmp_path) -> Rows:
    facts = {
        "special_token_ids": text.special,
        "first_ordinary_id": first_ordinary_id(text.tokenizer),
        "vocab_size": text.tokenizer.get_vocab_size(),
    }
    write_manifest(tmp_path, LENGTH, write_shards(tmp_path, "rows", text.rows, LENGTH), facts)
    return open_rows(tmp_path)


@pytest.fixture
def batches(text, rows) -> tuple[dict, dict]:
    """What the evaluation's collator makes of the rows, and the same with sentences alone."""
    features = EvaluationRows(rows)
    features = [features[index] for index in range(2)]
    collator = evaluation_collator(rows)
    alone = SentencesAlone(collator, SentenceEnds.of(text.tokenizer), text.special)
    return collator(features), alone(features)


def test_each_sentence_is_a_document(text, batches):
    _, alone = batches
    ids = np.where(alone["labels"] == IGNORED, alone["input_ids"], alone["labels"])
    documents = []
    for row, positions in zip(ids, alone["position_ids"].numpy(), strict=True):
        begins = np.flatnonzero(row == text.special["cls_id"])
        assert (positions[begins] == 0).all() and (positions[begins + 1] == 1).all()
        ends = np.flatnonzero(row == text.special["sep_id"])
        documents += [
            text.tokenizer.decode(row[first + 1 : last].tolist(), skip_special_tokens=False)
            for first, last in zip(begins, ends, strict=True)
        ]
    assert documents == SENTENCES


def test_the_same_tokens_are_masked_and_nothing_else_changes(text, batches):
    among, alone = batches
    frame = [text.special["cls_id"], text.special["sep_id"], text.special["pad_id"]]
    kept = [~np.isin(batch["input_ids"], frame) for batch in batches]
    for name in ("input_ids", "labels"):
        assert among[name][kept[0]].tolist() == alone[name][kept[1]].tolist()
    assert (among["labels"] != IGNORED).sum() >= 5
    assert ((alone["input_ids"] != text.special["pad_id"]) == alone["attention_mask"].bool()).all()


def test_sentences_are_compared_without_the_marks_that_end_them(text, rows):
    places = token_places(rows)
    compared, lengths = sentence_places(rows, places, SentenceEnds.of(text.tokenizer))
    ids = np.stack([rows[index] & 0x7FFF for index in range(2)])
    shown = [
        text.tokenizer.decode(row[chosen].tolist())
        for row, chosen in zip(ids, compared, strict=True)
    ]
    # The text of one sentence has no others beside it.
    assert shown == ["他问：“你带伞了吗我说没带雨下得很大我们只好等", "晚饭吃面条饭后去河边走走"]
    last = text.tokenizer.encode("饭后去河边走走。", add_special_tokens=False)
    assert lengths[1][compared[1]][-1] == len(last.ids)
