"""Cuts Chinese text into words."""

from pathlib import Path

import numpy as np

from tokenization_chinese_modernbert import simplify


class Segmenter:
    """rjieba over simplified characters, with a user's words beside its own.

    Args:
        dictionary: a text file with a word a line, or a word, a blank and its frequency, as
            jieba's user dictionaries have it; None for none.

    Raises:
        ImportError: if rjieba is not installed.
        ValueError, OSError: if the dictionary cannot be read; the message names the line.
    """

    def __init__(self, dictionary: Path | None = None):
        try:
            import rjieba
        except ImportError as error:
            raise ImportError(
                'word segmentation needs rjieba: pip install ".[train]" in the repository.'
            ) from error
        self._jieba = rjieba.Jieba()
        if dictionary:
            self._add(dictionary)

    def _add(self, dictionary: Path) -> None:
        try:
            lines = dictionary.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{dictionary}: not UTF-8 ({error}); convert it.") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            word, *rest = line.split()
            if len(rest) > 2 or (rest and not rest[0].isdecimal()):
                raise ValueError(
                    f"{dictionary}, line {number}: {line!r} is not 'word', 'word frequency' or "
                    "'word frequency tag'."
                )
            frequency = int(rest[0]) if rest else None
            self._jieba.add_word(simplify(word), frequency, rest[1] if rest[1:] else None)

    def word_lengths(self, text: str) -> np.ndarray:
        """Lengths of the words of a text, in characters: int64, summing to `len(text)`.

        Raises:
            ImportError: if opencc is not installed.
            ValueError: if the text holds half a surrogate pair.
        """
        words = self._jieba.cut(simplify(text))
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        if lengths.sum() != len(text):
            raise ValueError("the segmenter lost characters of the text; please report this text.")
        return lengths

    def segment(self, text: str) -> list[str]:
        """The words of a text; joined, they are the text again."""
        ends = self.word_lengths(text).cumsum().tolist()
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def word_starts(self, text: str) -> np.ndarray:
        """(words,) int64 character offsets at which words begin."""
        lengths = self.word_lengths(text)
        return lengths.cumsum() - lengths
