"""Entities by scores of spans: Efficient GlobalPointer (arXiv:2208.03054) over any encoder.

logits[label, i, j] = q_i · k_j / sqrt(size) + start[label, i] + end[label, j], RoPE on q and k,
for every span from token i to token j >= i. Spans that score above 0 are entities.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from finetuning.spans import Tokens, encode, frame

SIZE = 64  # dimensions of a query and a key
ROPE_BASE = 10_000.0
NONE = -1e4  # the logit of what is no span


@dataclass
class SpanOutput(ModelOutput):
    """`loss` if there were labels, and `logits` (batch, labels, tokens, tokens)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SpanTagger(nn.Module):
    """An encoder with a head for spans.

    Args:
        encoder: its first output is (batch, tokens, hidden size).
        labels: how many kinds of entities there are.
    """

    def __init__(self, encoder: nn.Module, labels: int):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        width = encoder.config.hidden_size
        self.pair = nn.Linear(width, 2 * SIZE)
        self.ends = nn.Linear(width, 2 * labels)

    @property
    def base_model(self) -> nn.Module:
        """The encoder, by the name that models of transformers have for it."""
        return self.encoder

    def forward(
        self, input_ids, attention_mask, token_type_ids=None, labels: torch.Tensor | None = None
    ) -> SpanOutput:
        """Scores of all spans.

        Args:
            labels: (batch, labels, tokens, tokens), 1 for an entity from token i to token j.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids, attention_mask, **types)[0]
        query, key = (_rotate(part) for part in self.pair(hidden).float().chunk(2, dim=-1))
        start, end = self.ends(hidden).float().transpose(1, 2).chunk(2, dim=1)
        logits = (query @ key.transpose(1, 2) / SIZE**0.5)[:, None]
        logits = logits + start[..., :, None] + end[..., None, :]
        real = attention_mask.bool()
        spans = (real[:, :, None] & real[:, None, :]).triu()
        logits = logits.masked_fill(~spans[:, None], NONE)
        return SpanOutput(None if labels is None else multi_label_loss(logits, labels), logits)


def _rotate(vectors: torch.Tensor) -> torch.Tensor:
    """RoPE on (batch, tokens, SIZE), pairs of neighboring dimensions."""
    place = torch.arange(vectors.shape[1], device=vectors.device)[:, None]
    angle = place * ROPE_BASE ** (-torch.arange(0, SIZE, 2, device=vectors.device) / SIZE)
    even, odd = vectors[..., ::2], vectors[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


def multi_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log(1 + Σ exp(wrong)) + log(1 + Σ exp(−right)) for each label of each text, and the mean.

    Args:
        logits, labels: (batch, labels, tokens, tokens).
    """
    logits, labels = logits.flatten(2), labels.flatten(2).bool()
    zero = logits.new_zeros(*logits.shape[:2], 1)
    wrong = torch.cat([logits.masked_fill(labels, -torch.inf), zero], dim=-1).logsumexp(-1)
    right = torch.cat([(-logits).masked_fill(~labels, -torch.inf), zero], dim=-1).logsumexp(-1)
    return (wrong + right).mean()


@dataclass(frozen=True)
class SpanDecoding:
    """The tokens of each example, where in a row the text begins, and the labels."""

    texts: list[Tokens]
    offset: int
    labels: tuple[str, ...]


def features(examples, tokenizer, labels, borders) -> tuple[list[dict], SpanDecoding, Counter]:
    """Rows of inputs with `labels`, [label, first, last] in tokens of the row.

    Returns:
        The rows, what `decode` needs, and a count of entities that no run of tokens stands for.
    """
    framing = frame(tokenizer, 1)
    texts, rows, inexact = [], [], Counter()
    for example in examples:
        tokens = encode(example["text"], tokenizer, borders)
        spans = []
        for start, end, label in example["entities"] or ():
            covered = tokens.cover(start, end)
            if covered is None:
                inexact["no tokens of its own"] += 1
                continue
            inexact["ends within a token"] += not tokens.representable(start, end)
            spans.append([labels.index(label), *(at + framing.start_of(0) for at in covered)])
        texts.append(tokens)
        rows.append({**framing.build(tokens.ids), "labels": spans})
    return rows, SpanDecoding(texts, framing.start_of(0), labels), inexact


class SpanCollator:
    """Pads rows and makes a tensor of their `labels`."""

    def __init__(self, tokenizer, labels: int):
        self.tokenizer, self.labels = tokenizer, labels

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        names = [name for name in rows[0] if name != "labels"]
        inputs = [{name: row[name] for name in names} for row in rows]
        batch = self.tokenizer.pad(inputs, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        batch["labels"] = torch.zeros(len(rows), self.labels, width, width)
        for number, row in enumerate(rows):
            for label, first, last in row["labels"]:
                batch["labels"][number, label, first, last] = 1
        return dict(batch)


def decode(logits: list[np.ndarray], decoding: SpanDecoding) -> list[list[list]]:
    """The entities of each example, [start, end, label]; of two that overlap, the surer one.

    Args:
        logits: for each row (labels, tokens, tokens).
    """
    found = []
    for scores, tokens in zip(logits, decoding.texts, strict=True):
        kept, taken = [], set()  # characters: bytes of one have several tokens
        places = np.argwhere(scores > 0)
        for label, first, last in sorted(places.tolist(), key=lambda at: -scores[tuple(at)]):
            first, last = first - decoding.offset, last - decoding.offset
            if first < 0 or last >= len(tokens):
                continue
            start, end = tokens.text_span(first, last)
            if taken.isdisjoint(range(start, end)):
                taken.update(range(start, end))
                kept.append([start, end, decoding.labels[label]])
        found.append(sorted(kept))
    return found
