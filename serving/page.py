"""What the demo page computes: fills, confidence of words, pieces of a text, similarities.

Texts and a `Runtime` in, small dataclasses and arrays out; nothing here knows how they are shown.
`serving/app.py` is the page itself.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from serving.runtime import Fill, Runtime, softmax
from spans_chinese_modernbert import character_starts, group_spans
from tokenization_chinese_modernbert import word_ends

MASK = "[MASK]"
# An answer should come within about a second on two CPU cores. To judge the words, the text is read
# once for each of them, so it must be shorter.
MAX_TOKENS = 512
MAX_JUDGED_TOKENS = 128
MAX_TEXTS = 12
ROWS = 16  # texts in a batch; the logits of 16 × 128 tokens are 262 MB


class PageError(ValueError):
    """Something that a visitor can put right; the message is Chinese, then English."""


@dataclass(frozen=True)
class InputText:
    """A text as far as it is read.

    Attributes:
        text: the characters that are read.
        dropped: how many characters after them are not.
    """

    text: str
    dropped: int


@dataclass(frozen=True)
class FilledText:
    """A text around its masks: one part more than there are masks.

    Attributes:
        parts: the text before, between and after the masks.
        fills: for each mask the likeliest tokens.
        dropped: characters that were not read.
    """

    parts: list[str]
    fills: list[list[Fill]]
    dropped: int


@dataclass(frozen=True)
class JudgedWord:
    """A word and how much the model expects it; None where it cannot be judged."""

    text: str
    probability: float | None


@dataclass(frozen=True)
class Piece:
    """The smallest part of a text that begins and ends with a word, a token and a character.

    Attributes:
        words, characters: its text, cut in two ways.
        tokens: (token, id) of each.
    """

    words: list[str]
    tokens: list[tuple[str, int]]
    characters: list[str]


def read_input(text: str, tokenizer: Tokenizer, max_tokens: int) -> InputText:
    """The first `max_tokens` tokens of a text, `[CLS]` and `[SEP]` among them.

    Unpaired surrogates, which no encoding can hold, become U+FFFD.

    Raises:
        PageError: if it is empty or blank.
    """
    if not text or not text.strip():
        raise PageError("请先输入文字。 Please enter some text first.")
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    # So many characters fill the tokens of any sensible text, whatever its length.
    start = text[: 16 * max_tokens]
    offsets = tokenizer.encode(start, add_special_tokens=False).offsets
    size = max_tokens - 2
    # Else it ends where the first token begins that has no room.
    end = len(start) if len(offsets) <= size else offsets[size][0]
    return InputText(text[:end], len(text) - end)


def max_tokens_of(runtime: Runtime, limit: int = MAX_TOKENS) -> int:
    """Tokens that the page lets a model read."""
    return min(limit, runtime.folder.longest_text)


def fill_masks(runtime: Runtime, text: str, top: int = 5) -> FilledText:
    """The likeliest tokens for each [MASK] of a text, all masks judged in one pass.

    Raises:
        PageError: if the text is empty, or has no [MASK] where it is read.
    """
    read = read_input(text, runtime.tokenizer, max_tokens_of(runtime))
    mask = runtime.tokenizer.id_to_token(runtime.mask_id)
    if mask != MASK:  # of a converted model, such as <mask>
        read = InputText(read.text.replace(MASK, mask), read.dropped)
    if mask not in read.text:
        raise PageError(
            f"没有找到 {MASK}：请在要填的位置写上 {MASK}。 "
            f"There is no {MASK}: write {MASK} where a word is to be filled in."
            + (f" {cut_remark(read.dropped)}" if read.dropped else "")
        )
    (fills,) = runtime.fill_masks([read.text], top)
    return FilledText(read.text.split(mask), fills, read.dropped)


def word_starts(text: str) -> list[int]:
    """Where the words of a text start.

    Raises:
        PageError: if the packages that find words are missing.
    """
    try:
        ends = word_ends(text).tolist()
    except ImportError as error:
        raise PageError(
            "缺少分词组件。 Words cannot be found: `pip install rjieba opencc` is needed."
        ) from error
    return [0, *ends[:-1]]


def cut_at(text: str, starts) -> list[str]:
    """A text cut into the parts that begin at `starts`."""
    borders = [0, *(start for start in sorted(starts) if 0 < start < len(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]


def judge_words(runtime: Runtime, text: str) -> tuple[list[JudgedWord], int]:
    """Each word of a text with the probability that the model gives it when it is masked.

    A word of several tokens is masked as a whole; its probability is the geometric mean of its
    tokens'. Words that share a token are judged as one. White space and masks are not judged.

    Returns:
        The words, which joined are the text, and how many characters were not read.

    Raises:
        PageError: if the text is empty or words cannot be found.
    """
    limit = max_tokens_of(runtime, MAX_JUDGED_TOKENS)
    read = read_input(text, runtime.tokenizer, limit)
    encoding = runtime.tokenizer.encode(read.text)
    ids = np.array(encoding.ids)
    firsts, spans = group_spans(encoding.offsets[1:-1], set(word_starts(read.text)))
    if not len(spans):
        return [JudgedWord(read.text, None)], read.dropped
    spans[0, 0] = 0  # white space in front, which some tokenizers pass over, is of the first word
    words = cut_at(read.text, spans[:, 0].tolist())
    borders = np.append(firsts, len(ids) - 2) + 1  # [CLS] comes first
    mask_id = runtime.mask_id
    places = [
        np.arange(start, end)
        for word, (start, end) in zip(words, itertools.pairwise(borders), strict=True)
        if word.strip() and mask_id not in ids[start:end]
    ]
    judged = iter(_masked_probabilities(runtime, ids, places))
    starts = {int(place[0]) for place in places}
    return [
        JudgedWord(word, next(judged) if start in starts else None)
        for word, start in zip(words, borders[:-1].tolist(), strict=True)
    ], read.dropped


def _masked_probabilities(
    runtime: Runtime, ids: np.ndarray, places: list[np.ndarray]
) -> list[float]:
    """Geometric mean of the probabilities of the tokens at each of `places`, masked together."""
    results = []
    for first in range(0, len(places), ROWS):
        chosen = places[first : first + ROWS]
        rows = np.tile(ids, (len(chosen), 1))
        for row, place in zip(rows, chosen, strict=True):
            row[place] = runtime.mask_id
        logits = runtime.forward(rows, np.ones_like(rows))["logits"]
        for row, place in enumerate(chosen):
            chances = softmax(logits[row, place])[np.arange(len(place)), ids[place]]
            results.append(float(np.exp(np.log(np.maximum(chances, 1e-30)).mean())))
    return results


def cut_into_pieces(runtime: Runtime, text: str) -> tuple[list[Piece], int]:
    """The words, tokens and characters of a text side by side.

    Returns:
        The pieces, which joined are the text, and how many characters were not read.

    Raises:
        PageError: if the text is empty or words cannot be found.
    """
    tokenizer = runtime.tokenizer
    read = read_input(text, tokenizer, max_tokens_of(runtime))
    encoding = tokenizer.encode(read.text, add_special_tokens=False)
    words, characters = set(word_starts(read.text)), character_starts(read.text)
    firsts, spans = group_spans(encoding.offsets, words & characters)
    tokens = list(zip(map(runtime.token_text, encoding.ids), encoding.ids, strict=True))
    pieces = []
    for (first, last), (start, end) in zip(
        itertools.pairwise([*firsts.tolist(), len(tokens)]), spans.tolist(), strict=True
    ):
        part = read.text[start:end]
        inside = [
            cut_at(part, [place - start for place in starts]) for starts in (words, characters)
        ]
        pieces.append(Piece(inside[0], tokens[first:last], inside[1]))
    return pieces, read.dropped


def read_texts(text: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[list[str], list[str]]:
    """The texts to compare, one a line, and remarks on what was left out.

    Raises:
        PageError: if there are fewer than two.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise PageError("请至少输入两行文字。 Please enter at least two texts, one a line.")
    remarks = []
    if len(lines) > MAX_TEXTS:
        remarks.append(
            f"只比较前 {MAX_TEXTS} 行。 Only the first {MAX_TEXTS} of {len(lines)} texts are "
            "compared."
        )
    read = [read_input(line, tokenizer, max_tokens) for line in lines[:MAX_TEXTS]]
    remarks += [
        f"第 {number} 行：{cut_remark(one.dropped)}"
        for number, one in enumerate(read, 1)
        if one.dropped
    ]
    return [one.text for one in read], remarks


def cut_remark(dropped: int) -> str:
    """What is said of a text that was cut."""
    return (
        f"文字太长，末尾 {dropped:,} 个字符未读取。 "
        f"The text is too long: its last {dropped:,} characters were not read."
    )


def normalized(vectors: np.ndarray) -> np.ndarray:
    """(texts, size), each of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """(texts, size) -> (texts, texts): cosines."""
    unit = normalized(vectors)
    return unit @ unit.T
