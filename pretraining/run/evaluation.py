"""Held-out evaluation of masked language modeling: masked accuracy and bits per character."""

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from data_collator_wwm import (
    IGNORED,
    DataCollatorForWholeWordMasking,
)
from pretraining.data.rows import Rows
from pretraining.run.figures import MaskedTokens
from pretraining.run.held_out_groups import TokenPlaces, token_places

MASK_RATE = 0.15

# What is measured on held-out rows, beside the time that it takes.
METRICS = (
    "loss",
    "bits_per_character",
    "masked_accuracy",
    "most_frequent_rate",
    "word_accuracy",
)


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


def evaluation_labels(rows: Rows) -> np.ndarray:
    """(rows, seq_len) int64: the labels of all held-out rows, -100 where not masked."""
    features = EvaluationRows(rows)
    batch = evaluation_collator(rows)([features[index] for index in range(len(features))])
    return batch["labels"].numpy()


def masked_tokens(
    labels: np.ndarray, reduced: np.ndarray, places: TokenPlaces, token_lengths: np.ndarray
) -> tuple[MaskedTokens, TokenPlaces]:
    """What was predicted for the masked tokens, and where these stand.

    Args:
        labels: (rows, seq_len), -100 where not masked.
        reduced: (masked tokens, 2), of these as from `reduce_logits`.
        places: those of all tokens, (rows, seq_len).
        token_lengths: (vocab_size,) number of characters of each id.

    Raises:
        ValueError: if no token is masked.
    """
    masked = labels != IGNORED
    if not masked.any():
        raise ValueError("no token of the held-out rows is masked; check that the rows hold text.")
    labels, places = labels[masked], places[masked]
    predicted, nats = reduced.T
    characters = token_lengths[labels]
    tokens = MaskedTokens(labels, predicted.astype(np.int64), nats, characters, places.documents)
    return tokens, places


class MaskedLanguageModelingMetrics:
    """Trainer's `compute_metrics`, from the output of `reduce_logits`.

    - `masked_accuracy`: share of masked tokens whose original id is predicted;
    - `most_frequent_rate`: the accuracy of always predicting the most frequent masked id;
    - `bits_per_character`: cross-entropy of the masked tokens in bits, per character of these;
    - `word_accuracy`: share of masked words of which every token is predicted, also given for
      words of 1, 2, 3, and 4 or more characters.

    Accuracy and bits are also given by position in the document (`masked_accuracy/tokens 128-255`),
    by its length (`masked_accuracy/documents of 17-32 tokens`) and, if the row set separates
    domains, by domain (`bits_per_character/law (hans)`).

    Args:
        token_lengths: (vocab_size,) number of characters of each id.
        rows: the held-out rows, in the order of evaluation.
    """

    def __init__(self, token_lengths: np.ndarray, rows: Rows):
        self.token_lengths = token_lengths
        self._places = token_places(rows)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        labels = prediction.label_ids
        reduced = prediction.predictions[labels != IGNORED]
        tokens, places = masked_tokens(labels, reduced, self._places, self.token_lengths)
        metrics = {
            "most_frequent_rate": float(np.bincount(tokens.labels).max() / len(places.words))
        }
        metrics |= self._by_word(places.words, tokens.right, tokens.characters)
        groups = {"": None, **places.by_position(), **places.by_length(), **places.by_domain()}
        for suffix, chosen in groups.items():
            score = tokens.score(chosen)
            metrics[f"masked_accuracy{suffix}"] = score.accuracy.value
            metrics[f"bits_per_character{suffix}"] = score.bits_per_character.value
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


def evaluated_at_the_end(trainer: Trainer) -> bool:
    """Whether the weights with which a run ended were evaluated last."""
    if trainer.args.load_best_model_at_end:  # they may be those of an earlier step
        return False
    state = trainer.state
    return any(
        "eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history
    )
