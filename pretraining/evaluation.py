"""Held-out evaluation of masked language modelling: masked accuracy and bits per character."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset


def evaluation_mask_rate(step: int) -> float:
    """Share of tokens masked in held-out rows, the same at every step."""
    return 0.15


class EvaluationRows(Dataset):
    """Rows in their stored order, marked so that the collator masks them for evaluation."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"row": self.rows[index], "position": index, "evaluation": True}


class TrainOrEvaluationCollator:
    """Trainer has one collator for both; this sends each batch to its own.

    Args:
        train, evaluation: collators that take {"row", "position"} features.
    """

    def __init__(self, train, evaluation):
        self.train = train
        self.evaluation = evaluation

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        return self.evaluation(features) if "evaluation" in features[0] else self.train(features)


def reduce_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(batch, sequence, vocab_size) -> (batch, sequence, 2): predicted id, and nats of the label.

    Run batch by batch, so that the logits of the whole set are never held. Positions that are not
    masked hold zeros.
    """
    masked = labels != -100
    predicted = logits[masked].float()
    reduced = torch.zeros(*labels.shape, 2, device=logits.device)  # fp32 holds every id exactly
    nats = F.cross_entropy(predicted, labels[masked], reduction="none")
    reduced[masked] = torch.stack((predicted.argmax(-1).float(), nats), dim=-1)
    return reduced


class MaskedLanguageModellingMetrics:
    """Trainer's `compute_metrics` over what `reduce_logits` keeps.

    - `masked_accuracy`: share of masked tokens whose original id ranks first;
    - `most_frequent_rate`: the accuracy of always naming the commonest masked id, to beat;
    - `bits_per_character`: bits to name the masked tokens, over the characters they stand for.

    Args:
        token_lengths: (vocab_size,) characters each id stands for.
    """

    def __init__(self, token_lengths: np.ndarray):
        self.token_lengths = token_lengths

    def __call__(self, prediction) -> dict[str, float]:
        masked = prediction.label_ids != -100
        labels = prediction.label_ids[masked]
        if labels.size == 0:
            raise ValueError("no token of the held-out rows is masked: are the rows empty?")
        predicted, nats = prediction.predictions[masked].T
        characters = self.token_lengths[labels].sum()
        return {
            "masked_accuracy": float((predicted == labels).mean()),
            "most_frequent_rate": float(np.bincount(labels).max() / labels.size),
            "bits_per_character": float(nats.sum() / math.log(2) / max(characters, 1)),
        }
