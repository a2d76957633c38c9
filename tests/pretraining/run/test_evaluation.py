"""Held-out evaluation: accuracy and bits are those of the full logits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_collator_wwm import IGNORED, WORD_START
from pretraining.data.rows import open_rows, write_manifest, write_shards
from pretraining.run import held_out_groups
from pretraining.run.evaluation import (
    EvaluationRows,
    MaskedLanguageModelingMetrics,
    TrainOrEvaluationCollator,
    evaluated_at_the_end,
    evaluation_collator,
    reduce_logits,
)


def test_logits_are_reduced_to_the_prediction_and_its_cost():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[2, -100, 0]])
    reduced = reduce_logits(logits, labels)
    assert reduced[0, :, 0].tolist() == [1, 0, 0]
    cost = torch.logsumexp(logits[0, 0], 0) - 1.0
    assert reduced[0, :, 1].tolist() == pytest.approx([cost.item(), 0, math.log(3)])


# Entries 7, 8 and 9 have 1, 2 and 4 characters; a negative token starts a word.
LENGTHS = np.zeros(10, dtype=int)
LENGTHS[[7, 8, 9]] = 1, 2, 4


@pytest.fixture
def rows(tmp_path):
    """Two shards of one row: a document of two words, two documents of one word each."""
    written = []
    for name, tokens in (("law (hans)", [2, -7, 8, -7, 3]), ("diary (yue)", [2, -9, 3, 2, -7])):
        row = np.array([abs(token) for token in tokens], dtype=np.uint16)
        row[np.array(tokens) < 0] |= WORD_START
        shards = write_shards(tmp_path, name, [row], len(row))
        written += [{**shard, "domain": name} for shard in shards]
    special = {"cls_id": 2, "sep_id": 3, "pad_id": 0}
    write_manifest(tmp_path, 5, written, {"special_token_ids": special})
    return open_rows(tmp_path)


def metrics_of(rows, labels, predicted, bits) -> dict[str, float]:
    nats = math.log(2) * np.array(bits)
    prediction = np.stack([np.array(predicted), nats], axis=-1)
    given = SimpleNamespace(label_ids=np.array(labels), predictions=prediction)
    return MaskedLanguageModelingMetrics(LENGTHS, rows)(given)


def test_metrics_count_masked_tokens_alone(rows):
    metrics = metrics_of(
        rows,
        labels=[[-100, 7, 8, 7, -100], [-100, 9, -100, -100, -100]],
        predicted=[[7, 7, 7, 7, 7], [9, 9, 9, 9, 9]],
        bits=[[50, 1, 2, 3, 50], [50, 4, 50, 50, 50]],
    )
    assert metrics["masked_accuracy"] == 3 / 4
    assert metrics["most_frequent_rate"] == 2 / 4
    assert metrics["bits_per_character"] == pytest.approx((1 + 2 + 3 + 4) / (1 + 2 + 1 + 4))


def test_a_word_is_right_if_all_of_it_is(rows):
    metrics = metrics_of(
        rows,
        labels=[[-100, 7, 8, 7, -100], [-100, 9, -100, -100, 7]],
        predicted=[[0, 7, 7, 7, 0], [0, 9, 0, 0, 9]],
        bits=np.ones((2, 5)),
    )
    words = {name: value for name, value in metrics.items() if name.startswith("word_accuracy")}
    assert words == {
        "word_accuracy": 2 / 4,
        "word_accuracy/1 character": 1 / 2,
        "word_accuracy/3": 0,
        "word_accuracy/4 or more": 1,
    }


def test_accuracy_is_given_by_domain_length_and_place_in_the_document(rows, monkeypatch):
    monkeypatch.setattr(held_out_groups, "FIRST_POSITIONS", 2)
    monkeypatch.setattr(held_out_groups, "FIRST_LENGTHS", 1)
    metrics = metrics_of(
        rows,
        labels=[[-100, 7, -100, 7, -100], [-100, 9, -100, -100, 7]],
        predicted=[[0, 7, 0, 8, 0], [0, 9, 0, 0, 7]],
        bits=[[0, 1, 0, 6, 0], [0, 2, 0, 0, 3]],
    )
    assert metrics["masked_accuracy/law (hans)"] == 1 / 2
    assert metrics["masked_accuracy/diary (yue)"] == 1
    assert metrics["bits_per_character/diary (yue)"] == pytest.approx(5 / 5)
    assert metrics["masked_accuracy/tokens 0-1"] == 1
    assert metrics["masked_accuracy/tokens 2-3"] == 0
    assert metrics["bits_per_character/tokens 0-1"] == pytest.approx(6 / 6)
    assert metrics["masked_accuracy/documents of 1-1 tokens"] == 1
    assert metrics["masked_accuracy/documents of 3-4 tokens"] == 1 / 2
    assert "masked_accuracy/documents of 2-2 tokens" not in metrics


def test_rows_without_masked_tokens_are_refused(rows):
    nothing = SimpleNamespace(label_ids=np.full((2, 5), -100), predictions=np.zeros((2, 5, 2)))
    with pytest.raises(ValueError, match="no token of the held-out rows is masked"):
        MaskedLanguageModelingMetrics(LENGTHS, rows)(nothing)


def test_held_out_rows_go_to_the_evaluation_collator():
    collator = TrainOrEvaluationCollator(train=lambda f: "train", evaluation=lambda f: "evaluation")
    rows = EvaluationRows([np.zeros(4, dtype=np.uint16)] * 3)
    assert len(rows) == 3
    assert collator([rows[0], rows[2]]) == "evaluation"
    assert collator([{"row": rows.rows[0], "position": 0}]) == "train"


def test_held_out_rows_are_masked_the_same_in_every_evaluation():
    ids = {"pad_id": 0, "cls_id": 2, "sep_id": 3, "mask_id": 4}
    manifest = {"special_token_ids": ids, "vocab_size": 100, "first_ordinary_id": 5}
    texts = np.random.default_rng(0).integers(5, 100, (8, 100)) | WORD_START
    stored = [np.array([2, *text, 3], dtype=np.uint16) for text in texts]
    rows = EvaluationRows(stored)
    collator = evaluation_collator(SimpleNamespace(manifest=manifest))
    batch = collator([rows[index] for index in range(8)])
    masked = batch["labels"] != IGNORED
    assert masked.sum(1).tolist() == [15] * 8
    assert ((batch["input_ids"] == 4) == masked).all()
    alone = collator([rows[5]])
    assert torch.equal(alone["labels"][0], batch["labels"][5])


def test_weights_that_were_put_back_at_the_end_are_evaluated_anew():
    history = [{"step": 2, "eval_loss": 3.0}, {"step": 4, "eval_loss": 3.5}]
    state = SimpleNamespace(log_history=history, global_step=4)
    for put_back in (False, True):
        arguments = SimpleNamespace(load_best_model_at_end=put_back)
        trainer = SimpleNamespace(args=arguments, state=state)
        assert evaluated_at_the_end(trainer) is not put_back
    state.global_step = 5
    assert not evaluated_at_the_end(SimpleNamespace(args=arguments, state=state))
