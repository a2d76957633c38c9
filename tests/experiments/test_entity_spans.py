"""Scores of spans: the loss against a plain sum, spans there and back, and what cannot be one."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from experiments.entity_spans.span_head import (
    NONE,
    SpanCollator,
    SpanTagger,
    decode,
    features,
    multi_label_loss,
)
from modeling_chinese_modernbert import ChineseModernBertModel
from runs import ROOT

LABELS = ("place", "name")
EXAMPLES = [
    {"id": 0, "text": "她在图书馆等小林。", "entities": [[2, 5, "place"], [6, 8, "name"]]},
    {"id": 1, "text": "今天没有人来。", "entities": []},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(ROOT), trust_remote_code=True)


def test_the_loss_is_the_plain_sum_over_right_and_wrong_spans():
    logits, labels = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.zeros(1, 1, 3, 3)
    labels[0, 0, 0, 1] = labels[0, 0, 2, 2] = 1
    right, wrong = logits[labels == 1], logits[labels == 0]
    expected = torch.log1p(wrong.exp().sum()) + torch.log1p((-right).exp().sum())
    torch.testing.assert_close(multi_label_loss(logits, labels), expected)


def test_entities_come_back_and_of_two_that_overlap_the_surer(tokenizer):
    rows, decoding, _ = features(EXAMPLES, tokenizer, LABELS, "words")
    batch = SpanCollator(tokenizer, len(LABELS))([dict(row) for row in rows])
    logits = np.where(batch["labels"] == 1, 2.0, -1.0)
    assert decode(list(logits), decoding) == [example["entities"] for example in EXAMPLES]
    label, first, last = rows[0]["labels"][0]
    logits[0, 1 - label, first, last] = 3.0
    assert decode(list(logits), decoding)[0][0] == [2, 5, "name"]


def test_padding_and_spans_that_end_before_they_begin_score_nothing(tokenizer, make_model):
    model = SpanTagger(make_model(cls=ChineseModernBertModel, vocab_size=32_000), len(LABELS))
    rows, _, _ = features(EXAMPLES, tokenizer, LABELS, "words")
    batch = SpanCollator(tokenizer, len(LABELS))([dict(row) for row in rows])
    output = model(**batch)
    real = batch["attention_mask"].bool()
    spans = (real[:, :, None] & real[:, None, :]).triu()[:, None].expand_as(output.logits)
    assert (output.logits[~spans] == NONE).all() and (output.logits[spans] != NONE).all()
    output.loss.backward()
    assert model.pair.weight.grad.abs().sum() > 0
