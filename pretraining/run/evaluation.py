"""Held-out evaluation of masked language modeling: masked accuracy and bits per character."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainerState

from data_collator_wwm import (
    IGNORED,
    DataCollatorForWholeWordMasking,
    document_positions,
    split_row,
)
from pretraining.data.rows import Rows

MASK_RATE = 0.15

# Metrics are also given for bands of positions in the document: the first has this many positions,
# and the end of each further band is twice that of the one before.
FIRST_BAND = 128


def evaluation_collator(rows: Rows) -> DataCollatorForWholeWordMasking:
    """Masks 15 % of the tokens of held-out rows, always by [MASK], and the same in every run."""
    return DataCollatorForWholeWordMasking.for_rows(
        rows, seed=0, mask_rate=MASK_RATE, replace=(1, 0, 0)
    )


class EvaluationRows(Dataset):
    """Rows in stored order, marked for the evaluation collator by the key "evaluation"."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"row": self.rows[index], "position": index, "evaluation": True}


class TrainOrEvaluationCollator:
    """Passes batches of `EvaluationRows` to one collator and all others to another.

    Trainer takes a single collator for training and evaluation.
    """

    def __init__(self, train, evaluation):
        self.train = train
        self.evaluation = evaluation

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        return self.evaluation(features) if "evaluation" in features[0] else self.train(features)


def reduce_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Reduces logits to what the metrics need, so that those of the whole set are never in memory.

    Args:
        logits: (batch, sequence, vocab_size).
        labels: (batch, sequence), -100 where not masked.

    Returns:
        (batch, sequence, 2): the predicted id, and the cross-entropy of the label in nats; zeros
        where not masked.
    """
    masked = labels != IGNORED
    predicted = logits[masked].float()
    reduced = torch.zeros(*labels.shape, 2, device=logits.device)  # fp32 holds every id exactly
    nats = F.cross_entropy(predicted, labels[masked], reduction="none")
    reduced[masked] = torch.stack((predicted.argmax(-1).float(), nats), dim=-1)
    return reduced


class MaskedLanguageModelingMetrics:
    """Trainer's `compute_metrics`, from the output of `reduce_logits`.

    - `masked_accuracy`: share of masked tokens whose original id is predicted;
    - `most_frequent_rate`: the accuracy of always predicting the most frequent masked id;
    - `bits_per_character`: cross-entropy of the masked tokens in bits, per character of these;
    - `word_accuracy`: share of masked words of which every token is predicted, also given for
      words of 1, 2, 3, and 4 or more characters.

    Accuracy and bits are also given by position in the document (`masked_accuracy/tokens 128-255`)
    and, if the row set separates domains, by domain (`bits_per_character/law (hans)`).

    Args:
        token_lengths: (vocab_size,) number of characters of each id.
        rows: the held-out rows, in the order of evaluation.
    """

    def __init__(self, token_lengths: np.ndarray, rows: Rows):
        self.token_lengths = token_lengths
        ids, starts = split_row(np.stack([rows[index] for index in range(len(rows))]))
        self._words = starts.cumsum().reshape(ids.shape)
        cls_id = rows.manifest["special_token_ids"]["cls_id"]
        self._places = document_positions(ids, cls_id)
        shards = rows.manifest["shards"]
        self._domains = None
        if all("domain" in shard for shard in shards):
            names = [shard["domain"] for shard in shards]
            self._domains = np.repeat(names, [shard["rows"] for shard in shards])

    def __call__(self, prediction) -> dict[str, float]:
        masked = prediction.label_ids != IGNORED
        labels = prediction.label_ids[masked]
        if labels.size == 0:
            raise ValueError(
                "no token of the held-out rows is masked; check that the rows hold text."
            )
        predicted, nats = prediction.predictions[masked].T
        right, characters = predicted == labels, self.token_lengths[labels]

        def of(chosen: np.ndarray, suffix: str = "") -> dict[str, float]:
            bits = nats[chosen].sum() / math.log(2)
            return {
                f"masked_accuracy{suffix}": float(right[chosen].mean()),
                f"bits_per_character{suffix}": float(bits / max(characters[chosen].sum(), 1)),
            }

        metrics = of(np.ones_like(right))
        metrics["most_frequent_rate"] = float(np.bincount(labels).max() / labels.size)
        metrics |= self._by_word(self._words[masked], right, characters)
        places, first = self._places[masked], 0
        while first <= places.max():
            last = max(2 * first, FIRST_BAND)
            if (band := (places >= first) & (places < last)).any():
                metrics |= of(band, f"/tokens {first}-{last - 1}")
            first = last
        if self._domains is not None:
            domains = np.broadcast_to(self._domains[:, None], masked.shape)[masked]
            for domain in np.unique(domains):
                metrics |= of(domains == domain, f"/{domain}")
        return metrics

    @staticmethod
    def _by_word(words: np.ndarray, right: np.ndarray, characters: np.ndarray) -> dict[str, float]:
        _, place = np.unique(words, return_inverse=True)
        named = np.bincount(place, ~right) == 0
        lengths = np.bincount(place, characters)
        metrics = {"word_accuracy": float(named.mean())}
        for length, name in ((1, "1 character"), (2, "2"), (3, "3"), (4, "4 or more")):
            chosen = lengths >= 4 if length == 4 else lengths == length
            if chosen.any():
                metrics[f"word_accuracy/{name}"] = float(named[chosen].mean())
        return metrics


def evaluated_at_the_end(state: TrainerState) -> bool:
    """Whether the last step of a run was evaluated."""
    return any(
        "eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history
    )
