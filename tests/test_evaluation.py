"""Held-out evaluation: accuracy and bits are those of the full logits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretraining.evaluation import (
    EvaluationRows,
    MaskedLanguageModellingMetrics,
    TrainOrEvaluationCollator,
    evaluation_mask_rate,
    reduce_logits,
)


def test_logits_are_reduced_to_the_prediction_and_its_cost():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[2, -100, 0]])
    reduced = reduce_logits(logits, labels)
    assert reduced[0, :, 0].tolist() == [1, 0, 0]
    cost = torch.logsumexp(logits[0, 0], 0) - 1.0
    assert reduced[0, :, 1].tolist() == pytest.approx([cost.item(), 0, math.log(3)])


def test_metrics_count_masked_tokens_alone():
    labels = np.array([[7, -100, 7], [8, 9, -100]])
    nats = math.log(2) * np.array([[1, 50, 2], [3, 4, 50]])
    predicted = np.array([[7, 7, 1], [8, 1, 7]])
    lengths = np.zeros(10, dtype=int)
    lengths[[7, 8, 9]] = 1, 2, 4
    metrics = MaskedLanguageModellingMetrics(lengths)(
        SimpleNamespace(label_ids=labels, predictions=np.stack([predicted, nats], axis=-1))
    )
    assert metrics == {
        "masked_accuracy": 2 / 4,
        "most_frequent_rate": 2 / 4,
        "bits_per_character": pytest.approx((1 + 2 + 3 + 4) / (1 + 1 + 2 + 4)),
    }


def test_rows_without_a_masked_token_are_refused():
    nothing = SimpleNamespace(label_ids=np.full((1, 2), -100), predictions=np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="no token of the held-out rows is masked"):
        MaskedLanguageModellingMetrics(np.ones(5))(nothing)


def test_held_out_rows_go_to_the_evaluation_collator():
    collator = TrainOrEvaluationCollator(train=lambda f: "train", evaluation=lambda f: "evaluation")
    rows = EvaluationRows([np.zeros(4, dtype=np.uint16)] * 3)
    assert len(rows) == 3
    assert collator([rows[0], rows[2]]) == "evaluation"
    assert collator([{"row": rows.rows[0], "position": 0}]) == "train"


def test_the_mask_rate_of_evaluation_is_fixed():
    assert {evaluation_mask_rate(step) for step in range(100)} == {0.15}
