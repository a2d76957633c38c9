"""Cuts Chinese text into words."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex

from pretraining.files import read_text
from tokenization_chinese_modernbert import simplify, word_ends

HAN = regex.compile(r"\p{Han}")

# A line of a user dictionary, as jieba reads it.
_ENTRY = regex.compile(r"(?P<word>.+?)(?:\s+(?P<frequency>\d+))?(?:\s+(?P<tag>[a-z]+))?")
_LARGEST_FREQUENCY = 10**12
# jieba's tags for parts of speech.
_TAGS = {
    *"abcdefghijklmnopqrstuvxyz",
    *("ad", "ag", "an", "df", "dg", "en", "eng", "mg", "mq", "ng", "nr", "nrfg", "nrt", "ns", "nt"),
    *("nz", "rg", "rr", "rz", "tg", "ud", "ug", "uj", "ul", "uv", "uz", "vd", "vg", "vi", "vn"),
    *("vq", "zg"),
}

# A place within a number or within a word of an alphabet, where no word of a dictionary ends.
_INSIDE = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}\p{Nd}])[\p{Latin}\p{Greek}\p{Cyrillic}\p{Nd}]"
)


def crosses_border(word_starts: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(spans,) bool: whether a word begins within a span, after its first character.

    Args:
        word_starts: (words,) offsets in ascending order.
        first, end: (spans,) offsets; the spans are [first, end).
    """
    return np.searchsorted(word_starts, end) > np.searchsorted(word_starts, first, side="right")


@dataclass(frozen=True)
class _Entry:
    word: str
    frequency: int | None
    tag: str | None
    line: int


def _read_dictionary(file: Path) -> Iterator[_Entry]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not (line := line.strip()):
            continue
        entry = _ENTRY.fullmatch(line)
        word, frequency, tag = entry["word"], entry["frequency"], entry["tag"]
        if tag and not frequency and tag not in _TAGS and word[-1].isascii() and word[-1].isalpha():
            raise ValueError(
                f"{file}, line {number}: {line!r} can be the word {line!r} or the word {word!r} "
                f"with the tag {tag!r}; write a frequency after the word, such as '{line} 5' or "
                f"'{word} 5 {tag}'."
            )
        if frequency and int(frequency) > _LARGEST_FREQUENCY:
            raise ValueError(
                f"{file}, line {number}: the frequency {frequency} is too large; give at most "
                f"{_LARGEST_FREQUENCY} or none."
            )
        yield _Entry(word, int(frequency) if frequency else None, tag, number)


@functools.cache
def _is_joined(character: str) -> bool:
    """Whether rjieba looks for words across this character, or splits the text at it first."""
    import rjieba

    jieba = rjieba.Jieba.empty()
    jieba.add_word(f"一{character}", 1, None)
    return jieba.cut(f"一{character}", False) == [f"一{character}"]


class _SplitWords:
    """Finds words that rjieba would split at characters of theirs.

    Such characters are rare in text, so each word is looked for where its first one occurs.

    Args:
        words: of at least two characters, one of them not `_is_joined`.
    """

    def __init__(self, words: Iterable[str]):
        # Beginnings of words up to the first such character -> the words, longest first; and such
        # character -> the lengths of what comes before it, longest first.
        self._words: dict[str, list[str]] = defaultdict(list)
        before: dict[str, set[int]] = defaultdict(set)
        for word in sorted(words, key=len, reverse=True):
            at = next(n for n, character in enumerate(word) if not _is_joined(character))
            self._words[word[: at + 1]].append(word)
            before[word[at]].add(at)
        self._before = {key: sorted(lengths, reverse=True) for key, lengths in before.items()}
        self._first = re.compile(f"[{re.escape(''.join(self._before))}]")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """The (start, end) of the words in a text, from left to right, without overlaps."""
        end = 0
        for match in self._first.finditer(text):
            for length in self._before[match[0]]:
                start = match.start() - length
                if start >= end and (word := self._longest(text, start, match.end())):
                    end = start + len(word)
                    yield start, end
                    break

    def _longest(self, text: str, start: int, known: int) -> str | None:
        """The longest word at a place, by its beginning `text[start:known]`."""
        for word in self._words.get(text[start:known], ()):
            edges = (start, start + len(word))
            if text.startswith(word, start) and not any(_INSIDE.match(text, e) for e in edges):
                return word
        return None


class Segmenter:
    """rjieba over simplified characters, with a user's words in addition to its own.

    A dictionary has a word a line, as jieba's user dictionaries have it: `word`, `word frequency`,
    `word tag` or `word frequency tag`, where the word may hold blanks. A number at the end is a
    frequency and lower-case letters at the end are a tag: write a frequency after a word that ends
    in one itself (`machine learning 5`). Tags change nothing here.

    - Words of the characters that rjieba joins (Han, ASCII letters and digits, `+#&._%-`) compete
      with its own: the likeliest reading of a text wins. Without a frequency they get one that
      lets them win over their parts; a frequency of 0 takes a word out of the list.
    - rjieba splits a text at all other characters (blanks, punctuation, Greek, kana, full-width
      letters, emoji) before it looks for words. A word that holds one of them is therefore found
      first, from left to right, the longest at each place, whatever its frequency (0 takes it
      out); rjieba cuts what lies between. Such a word is not found where it would split a number
      or a word of an alphabet (`New York` in `New Yorker`).

    Words match text in simplified and in traditional characters, and otherwise as they are
    spelled. Of several lines with the same word the last one counts.

    Args:
        dictionary: such a file, in UTF-8; None for none.

    Raises:
        ImportError: if rjieba or opencc is not installed.
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
        self._split_words: _SplitWords | None = None
        self._dictionary = dictionary
        self._entries: dict[str, _Entry] = {}
        if dictionary:
            self._add(_read_dictionary(dictionary))

    def _add(self, entries: Iterable[_Entry]) -> None:
        for entry in entries:
            word = simplify(entry.word)
            self._entries[word] = entry
            if all(map(_is_joined, word)):
                self._jieba.add_word(word, entry.frequency, entry.tag)
        split = [
            word
            for word, entry in self._entries.items()
            if entry.frequency != 0 and len(word) > 1 and not all(map(_is_joined, word))
        ]
        if split:
            self._split_words = _SplitWords(split)

    def unused_words(self) -> list[str]:
        """A message for each word of the dictionary that no text can be cut into, with its line."""
        messages = []
        for word, entry in self._entries.items():
            pieces = self._cut(word)
            if entry.frequency == 0 or pieces == [word]:
                continue
            message = (
                f"{self._dictionary}, line {entry.line}: {entry.word!r} has no effect, "
                f"{' + '.join(pieces)} is likelier"
            )
            if entry.frequency is not None:
                enough = self._jieba.suggest_freq(word)
                message += f" than a frequency of {entry.frequency}; give {enough} or none"
            messages.append(f"{message}.")
        return messages

    def _cut(self, text: str) -> list[str]:
        """The words of a simplified text."""
        if self._split_words is None:
            return self._jieba.cut(text)
        words, done = [], 0
        for start, end in self._split_words.spans(text):
            words += self._jieba.cut(text[done:start])
            words.append(text[start:end])
            done = end
        return words + self._jieba.cut(text[done:])

    def segment(self, text: str) -> list[str]:
        """The words of a text; joined, they are the text again.

        Raises:
            ImportError: if opencc is not installed.
            ValueError: if the text holds an unpaired surrogate.
        """
        ends = word_ends(text, self._cut).tolist()
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def word_starts(self, text: str) -> np.ndarray:
        """(words,) int64 character offsets at which words begin; errors as `segment` has them."""
        ends = word_ends(text, self._cut)
        return np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
