"""Weights by domain: how often the documents of each stand in the rows.

Weights are given by the `domain` field alone. A weight by file as well would have to say which of
the two counts; a corpus that needs one can name its domains apart.
"""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from pretraining.data.draws import draw
from pretraining.plain_yaml import read_yaml

# Documents that wait to be repeated, which keeps a copy and the next apart, so that they seldom
# share a row. Toward the end of a task fewer are left to wait.
WAITING = 4096


def read_weights(file: Path | None) -> dict[str, float]:
    """Weights by domain, from a YAML file with a line `domain: weight` for each.

    Raises:
        OSError, ValueError: if the file cannot be read or holds something else.
    """
    if file is None:
        return {}
    weights = read_yaml(file, "news: 2.5")
    try:
        check_weights(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return {name: float(weight) for name, weight in weights.items()}


def check_weights(weights: Mapping[str, float]) -> None:
    """Checks weights by domain.

    Raises:
        ValueError: if one is not a finite number from 0 up, or a domain's name not a text.
    """
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"domain {name!r}: not a text; put it in quotation marks.")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{name}: the weight {weight!r} is not a number from 0 up.")


def unused_weights(manifest: dict) -> list[str]:
    """The domains with a weight above 0 that no document of a row set has."""
    there = {name.rsplit(" (", 1)[0] for name in manifest["domains"]}  # "news (hans)"
    return [name for name, weight in manifest["weights"].items() if weight and name not in there]


def copies(text: str, weight: float, seed: int) -> int:
    """How often a document stands in the rows.

    Of weight 2.5, a half of the documents stand there twice and a half three times; of weight 0.3,
    three in ten stay.
    """
    whole = math.floor(weight)
    return whole + (draw(seed, "weight", text) < weight - whole)


class WeightDocuments(PipelineStep):
    """Drops and repeats documents as the weights of their domains say.

    The first copy keeps its place, the others come later. Their metadata hold their number as
    `copy`.

    Args:
        weights: by domain; one that is not named has 1.
        seed: of the draws.
    """

    type = "SAMPLER"
    name = "weights"

    def __init__(self, weights: Mapping[str, float], seed: int):
        super().__init__()
        self.weights = dict(weights)
        self.seed = seed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        # Documents that come again: the number of the next copy, and the number of all.
        waiting: deque[tuple[Document, int, int]] = deque()
        for document in data:
            weight = self.weights.get(document.metadata["domain"], 1)
            number = copies(document.text, weight, self.seed)
            if not number:
                self.stat_update(StatHints.dropped)
                continue
            yield document
            if number > 1:
                waiting.append((document, 1, number))
            while len(waiting) > WAITING:
                yield _next_copy(waiting)
        while waiting:
            yield _next_copy(waiting)


def _next_copy(waiting: deque[tuple[Document, int, int]]) -> Document:
    document, copy, number = waiting.popleft()
    if copy + 1 < number:
        waiting.append((document, copy + 1, number))
    return Document(document.text, document.id, metadata={**document.metadata, "copy": copy})
