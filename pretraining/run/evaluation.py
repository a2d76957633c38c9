"""Held-out evaluation of masked language modelling: masked accuracy and bits per character."""

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

# Places of a document's tokens that are evaluated together first; the next bands double.
FIRST_BAND = 128


def evaluation_collator(rows: Rows) -> DataCollatorForWholeWordMasking:
    """Masks held-out rows: 15 % of the tokens, whole words, always by [MASK], always the same."""
    return DataCollatorForWholeWordMasking.for_rows(
        rows, seed=0, mask_rate=MASK_RATE, replace=(1, 0, 0)
    )


class EvaluationRows(Dataset):
    """Rows in their stored order, marked so that the collator masks them for evaluation."""

    def __init__(self, rows: Rows):
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
    masked = labels != IGNORED
    predicted = logits[masked].float()
    reduced = torch.zeros(*labels.shape, 2, device=logits.device)  # fp32 holds every id exactly
    nats = F.cross_entropy(predicted, labels[masked], reduction="none")
    reduced[masked] = torch.stack((predicted.argmax(-1).float(), nats), dim=-1)
    return reduced


class MaskedLanguageModellingMetrics:
    """Trainer's `compute_metrics` over what `reduce_logits` keeps.

    - `masked_accuracy`: share of masked tokens whose original id ranks first;
    - `most_frequent_rate`: the accuracy of always naming the commonest masked id, to beat;
    - `bits_per_character`: bits to name the masked tokens, over the characters they stand for;
    - `word_accuracy`: share of masked words of which every token ranks first, and the same for
      words of 1, 2, 3, and 4 or more characters.

    Accuracy and bits are also given by the place in the document, in bands that double, and by
    domain where the row set keeps domains apart: `bits_per_character/law (hans)`.

    Args:
        token_lengths: (vocab_size,) characters each id stands for.
        rows: the held-out rows, in the order in which they are evaluated.
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
            raise ValueError("no token of the held-out rows is masked: are the rows empty?")
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
