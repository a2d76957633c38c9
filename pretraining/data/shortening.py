"""Short texts: cuts a share of the documents into passages and sentences.

What users send is mostly a sentence or a few, and a model that has only seen whole documents does
badly on them. Whether a document is cut, and where, follows from the seed and its text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pretraining.data.draws import draw
from pretraining.data.sentences import sentence_spans

UNITS = ("mixed", "sentence")
# Characters that a passage reaches at least; the length is drawn on a logarithmic scale, so that
# each doubling is as frequent as the next.
SHORTEST_PASSAGE = 32
LONGEST_PASSAGE = 256


@dataclass(frozen=True)
class Shortening:
    """Which documents are cut, and into what.

    Attributes:
        share: of the documents, from 0 (none) to 1 (all).
        unit: "sentence" for single sentences; "mixed" for single sentences in one half of the
            documents that are cut, and passages of several sentences in the other.

    Raises:
        ValueError: if there is no such share or unit.
    """

    share: float = 0.0
    unit: str = "mixed"

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"short_share {self.share}: give a share from 0 to 1.")
        if self.unit not in UNITS:
            raise ValueError(f"short_unit {self.unit!r}: give {' or '.join(UNITS)}.")


def shorten(text: str, shortening: Shortening, seed: int, copy: int = 0) -> list[str]:
    """The pieces that a document is cut into, or the whole of it.

    The pieces and the white space between them are the text.

    Args:
        seed: another one cuts other documents, at other places.
        copy: the number of a repeated document; each is cut independently.
    """
    if draw(seed, f"cut {copy}", text) >= shortening.share:
        return [text]
    spans = sentence_spans(text)
    if shortening.unit == "mixed" and draw(seed, f"passages {copy}", text) < 0.5:
        spans = list(_passages(text, spans, seed, copy))
    return [text[start:end] for start, end in spans]


def _passages(
    text: str, sentences: list[tuple[int, int]], seed: int, copy: int
) -> Iterator[tuple[int, int]]:
    """(start, end) of runs of sentences, each as long as its first sentence draws."""
    first, length = None, 0.0
    for start, end in sentences:
        if first is None:
            ratio = LONGEST_PASSAGE / SHORTEST_PASSAGE
            first = start
            length = SHORTEST_PASSAGE * ratio ** draw(seed, f"length {copy}", text[start:end])
        if end - first >= length:
            yield first, end
            first = None
    if first is not None:
        yield first, sentences[-1][1]


class ShortenDocuments(PipelineStep):
    """Gives each piece of a document as a document of its own.

    Args:
        shortening: which documents are cut, and into what.
        seed: of the draws.
    """

    type = "FORMAT"
    name = "short texts"

    def __init__(self, shortening: Shortening, seed: int):
        super().__init__()
        self.shortening = shortening
        self.seed = seed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            copy = document.metadata.get("copy", 0)  # of a repeated document, see `weighting`
            pieces = shorten(document.text, self.shortening, self.seed, copy)
            for number, piece in enumerate(pieces):
                yield Document(piece, f"{document.id}#{number}", metadata=document.metadata)
