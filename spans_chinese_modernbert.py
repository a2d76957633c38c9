"""Spans of text for the pipelines: no character is cut, and texts of any length are covered.

A character here is what a reader takes for one (a grapheme cluster of Unicode): an emoji joined
from several code points, or a letter with its combining marks, is one character.
"""

from collections.abc import Collection

import numpy as np
import regex  # a requirement of transformers

# \X alone looks back over all regional indicators before each pair of them, which is a flag.
_CHARACTER = regex.compile(r"\p{RI}{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*|\X")


def character_starts(text: str) -> set[int]:
    """Where the text's characters start, as indices of the string."""
    return {match.start() for match in _CHARACTER.finditer(text)}


def check_text(text: str, name: str) -> None:
    """Raises ValueError if a text holds half of a character, which no token stands for."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {text[error.start]!a}, an unpaired surrogate: half of a character. "
            "Decode the text in its own encoding, or take it out."
        ) from None


def group_spans(spans, borders: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """Groups neighboring spans so that groups meet at borders only.

    Groups are as small as possible: two spans are in one group only if they overlap, or if the
    text between them and the border that separates them leave no other choice.

    Args:
        spans: (spans, 2) start and end in the text, in its order, as `offset_mapping` gives them.
            They may overlap: all bytes of a character have its span.
        borders: the places in the text where a group may start.

    Returns:
        (groups,) the first span of each group, and (groups, 2) where each group starts and ends in
        the text.
    """
    spans = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    firsts, end = [], 0
    for index, (start, stop) in enumerate(spans.tolist()):
        if index == 0 or (start >= end and start in borders):
            firsts.append(index)
        end = max(end, stop)
    ends = np.maximum.reduceat(spans[:, 1], firsts)
    return np.array(firsts), np.stack([spans[firsts, 0], ends], axis=1)


def longest_input(tokenizer, config) -> int:
    """How many tokens the model takes at once, special tokens included."""
    return min(tokenizer.model_max_length, config.max_position_embeddings)


def overlapping_windows(tokens: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of windows of `size` tokens that cover all of them.

    Neighbors share `overlap` tokens. The last window ends with the text and is full, so it may
    share more.
    """
    if tokens <= size:
        return [(0, tokens)]
    last = tokens - size
    return [(start, start + size) for start in (*range(0, last, size - overlap), last)]


def context_in_window(start: int, stop: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of context each token of a window has to its left and to its right.

    Returns:
        Two arrays (stop - start,). Where the window begins (or ends) with the text, nothing is
        missing on that side, and the value is `tokens`, more than any window can hold.
    """
    place = np.arange(stop - start)
    complete = np.full(stop - start, tokens)
    return (place if start else complete), (place[::-1] if stop < tokens else complete)
