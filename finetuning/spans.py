"""Text as tokens for tasks on spans: where tokens may end, windows of a long text, and frames.

A span whose ends lie inside tokens cannot be predicted exactly. Three ways to encode a text trade
its length against this (`BORDERS`); `representable` tells which spans a way can give back.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import regex  # a requirement of transformers

from spans_chinese_modernbert import overlapping_windows
from tokenization_chinese_modernbert import word_ends

IGNORED = -100  # transformers' label of what does not count
BORDERS = ("plain", "words", "characters")
_CHARACTERS = regex.compile(r"\p{Han}|[^\p{Han}]+")


@dataclass(frozen=True)
class Tokens:
    """A text in tokens.

    Attributes:
        ids: (tokens,) int64.
        spans: (tokens, 2) int64, where each token starts and ends in the text. Bytes of one
            character share its span; characters that the tokenizer drops are in none.
    """

    ids: np.ndarray
    spans: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def cover(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and last token of the smallest run that holds [start, end) of the text.

        None if no token lies there.
        """
        inside = np.flatnonzero((self.spans[:, 0] < end) & (self.spans[:, 1] > start))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None

    def text_span(self, first: int, last: int) -> tuple[int, int]:
        """Where the tokens from `first` to `last` start and end in the text."""
        return int(self.spans[first, 0]), int(self.spans[last, 1])

    def representable(self, start: int, end: int) -> bool:
        """Whether a run of tokens stands for exactly [start, end) of the text."""
        covered = self.cover(start, end)
        return covered is not None and self.text_span(*covered) == (start, end)


def encode(text: str, tokenizer, borders: str) -> Tokens:
    """Encodes a text without special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        borders: where tokens have to end besides the tokenizer's own choice: "plain", nowhere;
            "words", at the end of each word (`tokenization_chinese_modernbert.word_ends`);
            "characters", around each Han character.

    Raises:
        ImportError: if words are wanted and rjieba or opencc is not installed.
        ValueError: on a tokenizer that gives no offsets, or on unknown borders.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no offsets, so its tokens cannot be matched with "
            "spans of text; use a model with a fast tokenizer (tokenizer.json)."
        )
    if borders not in BORDERS:
        raise ValueError(f"borders must be one of {', '.join(BORDERS)}, got {borders!r}.")
    if borders == "plain":
        return _encode(text, tokenizer)
    parts, start = [], 0
    for piece in _pieces(text, borders):
        tokens = _encode_piece(piece, tokenizer)
        parts.append(Tokens(tokens.ids, tokens.spans + start))
        start += len(piece)
    none = Tokens(np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64))
    return Tokens(
        np.concatenate([none.ids, *(part.ids for part in parts)]),
        np.concatenate([none.spans, *(part.spans for part in parts)]),
    )


def _encode(text: str, tokenizer) -> Tokens:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    spans = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    real = spans[:, 1] > spans[:, 0]  # SentencePiece's mark of a beginning has no text of its own
    return Tokens(ids[real], spans[real])


# The same words and characters come again and again, and a call of a tokenizer is slow.
LONGEST_KEPT = 32  # characters; longer pieces seldom come again
_encode_short = functools.lru_cache(maxsize=100_000)(_encode)


def _encode_piece(piece: str, tokenizer) -> Tokens:
    return (_encode_short if len(piece) <= LONGEST_KEPT else _encode)(piece, tokenizer)


def _pieces(text: str, borders: str) -> list[str]:
    if borders == "characters":
        return _CHARACTERS.findall(text)
    edges = [0, *word_ends(text).tolist()]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def windows(tokens: int, size: int, stride: int) -> list[tuple[int, int]]:
    """(start, stop) of windows of `size` tokens that cover a text and start `stride` apart.

    The last one ends with the text and is full, so it may start earlier.

    Raises:
        ValueError: if windows would be empty or leave gaps.
    """
    if not 0 < stride <= size:
        raise ValueError(
            f"windows of {size} tokens cannot start {stride} apart; raise max_length, or choose a "
            "stride of at least 1 and at most the tokens of a window."
        )
    return overlapping_windows(tokens, size, size - stride)


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around and between texts, learned from what it does with examples.

    Attributes:
        parts: the special tokens before the first text, after it and, for a pair, after the second.
        types: the token type of each of these parts' tokens and of the texts; None if the model
            takes none.
    """

    parts: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return sum(map(len, self.parts))

    def build(self, *texts) -> dict[str, list[int]]:
        """The model's inputs for one text or a pair, each given as ids: `input_ids`,
        `attention_mask` and, if the model takes them, `token_type_ids`."""
        ids = list(self.parts[0])
        for text, part in zip(texts, self.parts[1:], strict=True):
            ids += [*map(int, text), *part]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self.types is not None:
            kinds = list(self.types[0])
            for index, text in enumerate(texts):
                kinds += [self.types[-1][index]] * len(text) + list(self.types[index + 1])
            row["token_type_ids"] = kinds
        return row

    def start_of(self, index: int, *texts) -> int:
        """The position in the row of the first token of a text."""
        before = sum(len(texts[i]) + len(self.parts[i + 1]) for i in range(index))
        return len(self.parts[0]) + before


@functools.lru_cache(maxsize=8)
def frame(tokenizer, texts: int) -> Frame:
    """The frame of one text (`texts` 1) or of a pair (2)."""
    encoded = tokenizer(*["一"] * texts)
    owners = encoded.sequence_ids()
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids")
    # Positions at which a text begins and ends.
    edges = [0]
    for text in range(texts):
        edges += [owners.index(text), len(owners) - owners[::-1].index(text)]
    edges.append(len(ids))
    slices = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parts = tuple(tuple(ids[part]) for part in slices)
    if types is not None:
        own = tuple(types[owners.index(text)] for text in range(texts))
        types = (*(tuple(types[part]) for part in slices), own)
    return Frame(parts, types)


def clear_caches() -> None:
    """Forgets what was encoded; until then the caches keep their tokenizers in memory."""
    _encode_short.cache_clear()
    frame.cache_clear()
