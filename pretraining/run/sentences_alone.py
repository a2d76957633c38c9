"""Held-out sentences, each alone: the rows of an evaluation, cut into documents of one sentence.

The rows are masked as ever, and then [SEP] [CLS] is inserted after each sentence. So the tokens to
predict and everything else that is masked stay the same, and what a comparison with the uncut rows
shows is the worth of the other sentences, nothing else.

A sentence ends at one of 。！？；… or a line break, with the closing quotes and brackets that
follow. That mark, which is easy where [SEP] follows, is not among the tokens that are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from data_collator_wwm import IGNORED, document_positions
from pretraining.data.rows import Rows
from pretraining.data.tokens import token_spellings
from pretraining.run.held_out_groups import TokenPlaces, lengths_of, numbers, stored_ids

ENDS = "。！？；…!?\n"
CLOSING = "”’」』）】》〉〕)"
SENTENCES = "/sentences of "


@dataclass(frozen=True)
class SentenceEnds:
    """Which ids end a sentence, and which ones close a quotation or bracket after that.

    Attributes:
        ends, closing: (vocab_size,) bool.
    """

    ends: np.ndarray
    closing: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SentenceEnds":
        """Of a tokenizer's ids: those that spell nothing but such marks."""
        spellings = token_spellings(tokenizer)

        def consists_of(marks: str) -> np.ndarray:
            return np.array([bool(text) and set(text) <= set(marks) for text in spellings])

        return cls(consists_of(ENDS), consists_of(CLOSING))

    def marks(self, ids: np.ndarray) -> np.ndarray:
        """Whether each token of rows (rows, seq_len) belongs to the marks that end a sentence."""
        marks, closing = self.ends[ids], self.closing[ids]
        while True:
            more = closing.copy()
            more[:, 1:] &= marks[:, :-1]
            more[:, 0] = False
            if not (more & ~marks).any():
                return marks
            marks = marks | more

    def after(self, ids: np.ndarray, sep_id: int, pad_id: int) -> np.ndarray:
        """Whether, after each token of rows (rows, seq_len), a sentence begins in its document."""
        marks, after = self.marks(ids), np.zeros(ids.shape, dtype=bool)
        within = (ids[:, 1:] != sep_id) & (ids[:, 1:] != pad_id)
        after[:, :-1] = marks[:, :-1] & ~marks[:, 1:] & within
        return after


class SentencesAlone:
    """A collator that makes each sentence of the rows that another one has masked a document.

    Args:
        collator: that of the evaluation.
        ends: what ends a sentence.
        special: the manifest's ids of special tokens.
    """

    def __init__(self, collator: Callable, ends: SentenceEnds, special: dict[str, int]):
        self.collator = collator
        self.ends = ends
        self.special = special

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """As the evaluation's collator, except that rows are longer and padded to the longest."""
        batch = {name: value.numpy() for name, value in self.collator(features).items()}
        inputs, labels = batch["input_ids"], batch["labels"]
        cls_id, sep_id, pad_id = (self.special[name] for name in ("cls_id", "sep_id", "pad_id"))
        # A masked mark ends its sentence all the same.
        true = np.where(labels == IGNORED, inputs, labels)
        after = self.ends.after(true, sep_id, pad_id)
        longest = inputs.shape[1] + 2 * after.sum(1).max()
        cut = np.full((len(inputs), longest), pad_id)
        cut_labels = np.full_like(cut, IGNORED)
        for row, places in enumerate(map(np.flatnonzero, after)):
            at = np.repeat(places + 1, 2)
            length = inputs.shape[1] + len(at)
            cut[row, :length] = np.insert(inputs[row], at, [sep_id, cls_id] * len(places))
            cut_labels[row, :length] = np.insert(labels[row], at, IGNORED)
        real = cut != pad_id
        cut_batch = {
            "input_ids": cut,
            "attention_mask": real.astype(np.int64),
            "labels": cut_labels,
            "position_ids": document_positions(cut, cls_id) * real,
        }
        return {name: torch.from_numpy(value) for name, value in cut_batch.items()}


def sentence_places(
    rows: Rows, places: TokenPlaces, ends: SentenceEnds
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens can be compared, and how long their sentences are.

    Args:
        places: `token_places(rows)`.

    Returns:
        (rows, seq_len) bool: tokens of text that stand in documents of more than one sentence and
        do not belong to the marks that end one; (rows, seq_len) int64: tokens of the sentence.
    """
    ids, _ = stored_ids(rows)
    cls_id, sep_id, pad_id = (
        rows.manifest["special_token_ids"][name] for name in ("cls_id", "sep_id", "pad_id")
    )
    after = ends.after(ids, sep_id, pad_id)
    begins = places.positions == 0
    begins[:, 1:] |= after[:, :-1]
    text = ~np.isin(ids, [cls_id, sep_id, pad_id])
    documents = numbers(places.positions == 0)
    among_others = np.bincount(documents.ravel(), after.ravel())[documents] > 0
    return among_others & text & ~ends.marks(ids), lengths_of(numbers(begins), text)
