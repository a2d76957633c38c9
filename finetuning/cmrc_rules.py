"""The official rules of CMRC2018 for an answer (also used for DRCD): exact match and F1.

They follow version 5 of `cmrc2018_evaluate.py` of the task's makers
(https://github.com/ymcui/cmrc2018), which splits Latin text with NLTK. This file needs no package
for that; it splits the answers of CMRC2018 and DRCD as NLTK's word tokenizer does.
"""

import re
from difflib import SequenceMatcher

# The script's list. It also holds "……", which never equals a single character: an ellipsis stays.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = re.compile("[\u4e00-\u9fa5]")
# Where NLTK cuts text without Han characters, besides white space.
_CUTS = (
    (re.compile(r"(?:^|(?<=[ (\[{<]))\""), " `` "),
    (re.compile(r"\""), " '' "),
    (re.compile(r"[;@#$%&?!\[\](){}<>«»‘„\u2012-\u2015]|\.{2,}|[,:](?!\d)"), r" \g<0> "),
    (re.compile(r"(?<=[^' ])'(?= |$)|(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)"), " ' "),
    (re.compile(r"(?<!\.)\.(?=[\])}>\"'»”’ ]*$)"), " . "),
    (re.compile(r"(n't|'(?:s|m|d|ll|re|ve))\b"), r" \1"),
)


def _clean(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)


def segments(text: str) -> list[str]:
    """What F1 compares: Han characters one by one, other text in words; no punctuation, no case."""
    found, other = [], ""
    for character in _clean(text):
        if _HAN.match(character):
            found += [*_words(other), character]
            other = ""
        else:
            other += character
    return found + _words(other)


def _words(text: str) -> list[str]:
    for pattern, replacement in _CUTS:
        text = pattern.sub(replacement, text)
    return text.split()


def exact_match(prediction: str, answers: list[str]) -> float:
    """1.0 if an answer has the same characters, punctuation and case aside, else 0.0."""
    return float(any(_clean(prediction) == _clean(answer) for answer in answers))


def f1(prediction: str, answers: list[str]) -> float:
    """The best F1 over the answers, where what matches is the longest common run of segments."""
    given, best = segments(prediction), 0.0
    for answer in answers:
        wanted = segments(answer)
        matcher = SequenceMatcher(None, wanted, given, autojunk=False)
        if common := matcher.find_longest_match().size:
            best = max(best, 2 * common / (len(wanted) + len(given)))
    return best
