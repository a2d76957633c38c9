"""Where the sentences of Chinese text begin and end, and passages made of them."""

import re

# A shorter piece, such as an interjection or a list's number, joins its neighbor.
MINIMUM_LENGTH = 4

_LINE = re.compile(r"[^\r\n\u2028\u2029]+")
_CLOSING = "”’」』）】》〉〕］｝)\\]"
# A mark of ASCII ends a sentence after a Chinese character only: 3.14, Node.js and ?key= go on.
_END = re.compile(
    r"(?:(?:[。！？…；｡]|(?<=[\u3400-\u9fff])[.!?;．])[。！？…；｡.!?;．]*" f"[{_CLOSING}]*)+"
)
# What no sentence begins with: “真的！”，她说。
_CONTINUING = frozenset("，、：,:")
_NOT_FIRST = _CONTINUING | frozenset("”’」』）】》〉〕］｝")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence in characters, without white space around it.

    A sentence ends with a line or with 。！？…； or their ASCII forms; quotation marks and brackets
    that close after them belong to it. What lies between two spans is white space.
    """
    spans: list[tuple[int, int]] = []
    for line in _LINE.finditer(text):
        start = line.start()
        for end in [*_ends(text, *line.span()), line.end()]:
            _append(spans, text, start, end)
            start = end
    return spans


def passages_of(line: str, length: int) -> list[str]:
    """The passages of a line: as many whole sentences as fit into `length` characters.

    A sentence that is longer than that is cut where it must be.
    """
    passages = [""]
    for start, end in sentence_spans(line):
        sentence = " ".join(line[start:end].split())
        if passages[-1] and len(passages[-1]) + len(sentence) > length:
            passages.append("")
        whole = passages.pop() + sentence
        passages += [whole[at : at + length] for at in range(0, len(whole), length)] or [""]
    return [passage for passage in passages if passage]


def _ends(text: str, start: int, stop: int) -> list[int]:
    """Where sentences end within a line."""
    ends, quotes, counted = [], 0, start
    for mark in _END.finditer(text, start, stop):
        end = mark.end()
        quotes, counted = quotes + text.count('"', counted, end), end
        # A straight quotation mark closes if it is the second, fourth … of its line.
        if text.startswith('"', end) and quotes % 2:
            end += 1
        if text[end : end + 1] not in _CONTINUING:
            ends.append(end)
    return ends


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    """Adds a sentence to the list, or to the one before if the two belong together."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    if start == end:
        return
    if spans:
        before = spans[-1]
        too_short = min(end - start, before[1] - before[0]) < MINIMUM_LENGTH
        if too_short or text[start] in _NOT_FIRST:
            spans[-1] = (before[0], end)
            return
    spans.append((start, end))
