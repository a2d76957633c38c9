"""Text → pieces with masked words, the same characters masked for two tokenizers.

A unit is the smallest run of characters whose ends are borders of words and of both tokenizers'
tokens, so each of them can mask it exactly. Which units are masked follows from the text alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from data_collator_wwm import MAX_UNIT_TOKENS
from pretraining.data.corpus import Document
from pretraining.data.words import Segmenter

MASK_RATE = 0.15

# A BERT of 512 positions reads that many tokens. Only Hangul, which BERT takes apart, has more of
# them than characters.
PIECE_CHARACTERS = MAX_TOKENS = 510

# What BERT's tokenizer makes of characters. (It puts blanks around Chinese ones only to split.)
_NORMALIZER = BertNormalizer(handle_chinese_chars=False, lowercase=True)


@dataclass(frozen=True)
class Encoded:
    """A piece in one tokenizer's tokens.

    Attributes:
        ids: (tokens,) int64, without [CLS] and [SEP].
        offsets: (tokens, 2) int64 characters [start, end) of each.
        masked: (tokens,) bool.
    """

    ids: np.ndarray
    offsets: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True)
class Piece:
    """A piece of a document.

    Attributes:
        document: number of the document in the corpus.
        domain: domain and script of the document.
        text: at most `PIECE_CHARACTERS` characters.
        masked: (characters,) bool.
        sides: the piece in each tokenizer's tokens.
    """

    document: int
    domain: str
    text: str
    masked: np.ndarray
    sides: tuple[Encoded, ...]


def masked_pieces(
    documents: Iterable[Document], tokenizers: Sequence[Tokenizer]
) -> Iterator[Piece]:
    """The pieces of a corpus in which something is masked, and which all sides can read whole.

    Args:
        tokenizers: such as take "[MASK]" in a text for text.
    """
    segmenter = Segmenter()
    for number, document in enumerate(documents):
        words = segmenter.word_starts(document.text)
        for start, end in _cuts(words, len(document.text)):
            text = document.text[start:end]
            within = words[(words >= start) & (words < end)] - start
            encoded = [_encode(tokenizer, text) for tokenizer in tokenizers]
            masked = _masked(text, within, [offsets for _, offsets in encoded])
            if masked.any() and all(len(ids) <= MAX_TOKENS for ids, _ in encoded):
                sides = tuple(
                    Encoded(ids, offsets, masked[offsets[:, 0]]) for ids, offsets in encoded
                )
                domain = f"{document.domain} ({document.script})"
                yield Piece(number, domain, text, masked, sides)


def _cuts(words: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of pieces, which end where a word does if it is not longer than a piece."""
    start = 0
    while start < length:
        end = min(start + PIECE_CHARACTERS, length)
        if end < length:
            border = int(words[words.searchsorted(end, side="right") - 1])
            end = border if border > start else end
        yield start, end
        start = end


def _encode(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return np.array(encoding.ids, dtype=np.int64), offsets


def units(text: str, words: np.ndarray, offsets: Sequence[np.ndarray]) -> np.ndarray:
    """(units,) int64: where the units of a text begin.

    Args:
        words: (words,) where words begin.
        offsets: (tokens, 2) for each tokenizer.
    """
    inside = np.zeros(len(text) + 1, dtype=np.int64)
    for spans in offsets:
        # One more from behind a token's first character on, one less from its end on.
        np.add.at(inside, np.minimum(spans[:, 0] + 1, spans[:, 1]), 1)
        np.add.at(inside, spans[:, 1], -1)
    return words[inside.cumsum()[words] == 0]


def _masked(text: str, words: np.ndarray, offsets: Sequence[np.ndarray]) -> np.ndarray:
    """(characters,) bool: 15 % of the units that both tokenizers spell, by the hash of the text."""
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    # One draw for each character; a unit takes that of its first. So another pair of tokenizers
    # masks the same words, except where its units differ.
    drawn = np.random.Generator(np.random.Philox(key=key)).random(len(text)) < MASK_RATE
    masked = np.zeros(len(text), dtype=bool)
    starts = units(text, words, offsets)
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if drawn[start] and _is_spelled(text[start:end]):
            masked[start:end] = True
    return masked


def _is_spelled(unit: str) -> bool:
    """Whether BERT keeps every character as it is: the other side would have to tell more."""
    blank = any(character.isspace() for character in unit)
    short = len(unit) <= MAX_UNIT_TOKENS
    return short and not blank and _NORMALIZER.normalize_str(unit) == unit
