"""Cuts Chinese text into words.

The segmenter knows simplified Chinese. Traditional characters are mapped to simplified ones, one
for one, for the cut alone: lengths stay, so the borders fit the original text.
"""

import functools

import numpy as np

_MISSING = 'word segmentation needs {}: pip install ".[train]" in the repository.'


@functools.lru_cache(maxsize=1)
def _simplified() -> dict[int, int]:
    """Code point -> code point of each Han character that OpenCC simplifies one for one."""
    try:
        import opencc
    except ImportError as error:
        raise ImportError(_MISSING.format("opencc")) from error
    convert = opencc.OpenCC("t2s").convert
    table = {}
    for first, last in ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)):
        for code in range(first, last + 1):
            simplified = convert(chr(code))
            if len(simplified) == 1 and ord(simplified) != code:
                table[code] = ord(simplified)
    return table


def word_lengths(text: str) -> np.ndarray:
    """Lengths of the words of a text, in characters: int64, summing to `len(text)`.

    Raises:
        ImportError: if rjieba or opencc is not installed.
        ValueError: if the text holds half a surrogate pair.
    """
    try:
        import rjieba
    except ImportError as error:
        raise ImportError(_MISSING.format("rjieba")) from error
    try:
        words = rjieba.cut(text.translate(_simplified()))
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds half a surrogate pair at {error.start}.") from error
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    if lengths.sum() != len(text):
        raise ValueError("the segmenter lost characters of the text; please report this text.")
    return lengths


def segment(text: str) -> list[str]:
    """The words of a text; joined, they are the text again."""
    lengths = word_lengths(text)
    ends = lengths.cumsum()
    return [text[start:end] for start, end in zip(ends - lengths, ends, strict=True)]


def word_starts(text: str) -> np.ndarray:
    """(words,) int64 character offsets at which words begin."""
    lengths = word_lengths(text)
    return lengths.cumsum() - lengths
