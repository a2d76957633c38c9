"""A sample of a corpus in which no domain and no script outweighs the others, unless it is to."""

import collections
import heapq
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import xxhash

from pretraining.data.corpus import Document
from pretraining.data.words import HAN
from pretraining.tokenizer.vocabulary import CANTONESE
from tokenization_chinese_modernbert import simplify

Stratum = tuple[str, str]

# Shares of a text's Han characters. Simplified text has next to no traditional characters, and
# traditional text 30 % of them; other Chinese hardly ever has the Cantonese particles.
_TRADITIONAL = 0.05
_CANTONESE = 0.02
_PARTICLES = frozenset("嘅咗喺哋啲嚟唔冇嘢乜咩佢嗰啱攞瞓睇諗咁噉喎㗎") & frozenset(CANTONESE)


def script_of(text: str) -> str:
    """What a text is written in, by its first 2,000 characters: "hans", "hant" or "yue".

    Text without Han characters counts as "hans".
    """
    han = "".join(HAN.findall(text[:2_000]))
    if sum(each in _PARTICLES for each in han) > _CANTONESE * len(han):
        return "yue"
    changed = sum(map(str.__ne__, han, simplify(han)))
    return "hant" if changed > _TRADITIONAL * len(han) else "hans"


def stratum_of(document: Document) -> Stratum:
    """Its domain and its script, guessed from the text where the corpus does not name it."""
    known = document.script != "unknown"
    return document.domain, document.script if known else script_of(document.text)


class Sample:
    """Keeps documents by domain and script, each stratum up to a budget of characters.

    A document's hash decides whether it stays, so the sample depends on the texts and the seed, not
    on their order or on the files that hold them. Memory is bounded by the budget times the strata.

    Args:
        budget: characters for a stratum; the document that exceeds it is the last one kept.
    """

    def __init__(self, budget: int, seed: int):
        self.budget, self._seed = budget, seed
        self._kept: dict[Stratum, list[tuple[int, str]]] = collections.defaultdict(list)
        self._sizes = collections.Counter()

    def add(self, document: Document) -> None:
        stratum = stratum_of(document)
        kept = self._kept[stratum]
        key = xxhash.xxh64_intdigest(document.text, self._seed)
        heapq.heappush(kept, (-key, document.text))
        self._sizes[stratum] += len(document.text)
        while self._sizes[stratum] - len(kept[0][1]) >= self.budget:
            self._sizes[stratum] -= len(heapq.heappop(kept)[1])

    def domains(self) -> set[str]:
        """The domains of which there are documents."""
        return {domain for domain, _ in self._kept}

    def strata(self) -> Iterable[tuple[Stratum, list[str]]]:
        """The strata and their texts, in a fixed order."""
        for stratum in sorted(self._kept):
            yield stratum, [text for _, text in sorted(self._kept[stratum], reverse=True)]


def share(texts: list[str], part: float, seed: int) -> list[str]:
    """About this part of the texts, always the same ones."""
    draws = np.array([xxhash.xxh64_intdigest(text, seed) for text in texts], dtype=np.uint64)
    return [text for text, draw in zip(texts, draws / 2**64, strict=True) if draw < part]


def check_domains(weights: Mapping[str, float], there: Collection[str]) -> None:
    """Checks that there is text of every domain that has a weight.

    Raises:
        ValueError: if there is none; the message names the domains that there are.
    """
    if missing := sorted(weights.keys() - set(there)):
        raise ValueError(
            f"weights for {', '.join(missing)}, but the corpus has no such domain; it has "
            f"{', '.join(sorted(there))}."
        )
