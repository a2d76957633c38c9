"""An index on disk: passages, their vectors in a graph (usearch), and BM25 over their words.

index.json              which model, how many passages, and which folder is valid
generation-N/
    passages.jsonl      text, file and line of each
    starts.npy          where each begins in passages.jsonl
    vectors.usearch     a graph over the vectors (HNSW), fp16; keys are the numbers of the passages
    words/              BM25 of bm25s

All of it is memory-mapped. A new generation is written beside the old one, opened once, and takes
its place when `index.json` is replaced; until then searches see the old one.
"""

import json
import mmap
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from embedding.lexical import need_packages, words_of
from embedding.passages import Passage
from pretraining.files import new_folder, read_json, write_json

NOTE, GENERATION = "index.json", "generation-"
PASSAGES, STARTS, VECTORS, WORDS = "passages.jsonl", "starts.npy", "vectors.usearch", "words"
# Each of the two rankings gives as many passages to a hybrid search. The constant of reciprocal
# rank fusion was chosen on CMRC's trial questions (docs/journal.md, 2026-11-28): with the usual 60,
# a passage far down in both rankings stands before the first of one.
DEPTH, RANK_CONSTANT = 100, 10
# Up to so many passages a query is compared with all of them: 7 ms for 100,000 on two CPU cores.
EXACT_UP_TO = 200_000
# Edges of a passage in the graph; neighbors that are kept in view while it grows and while it is
# searched. With 16, 128 and 128 a search among 100,000 found 92 % of the ten nearest, but only 78 %
# of the paragraphs of CMRC that are among them; with these, 99 and 98 %.
EDGES, GROWTH_VIEW, SEARCH_VIEW = 32, 256, 512
WAYS = ("hybrid", "vectors", "words")


@dataclass(frozen=True)
class IndexNote:
    """What `index.json` says.

    Args:
        model: folder or name of the model, as it was given.
        fingerprint: of its weights; the vectors of another are not comparable.
        size: dimensions of a vector.
        passages: how many there are.
        generation: the number of the valid folder.
    """

    model: str
    fingerprint: str
    size: int
    passages: int
    generation: int


@dataclass(frozen=True)
class Hit:
    """A passage that was found, and its score in this ranking."""

    score: float
    passage: Passage


def read_note(folder: Path) -> IndexNote:
    """The note of an index.

    Raises:
        ValueError, OSError: if the folder holds none.
    """
    if not (folder / NOTE).exists():
        raise ValueError(
            f"{folder} holds no index: make one with python -m embedding.search build."
        )
    try:
        return IndexNote(**read_json(folder / NOTE))
    except TypeError as error:
        raise ValueError(
            f"{folder / NOTE} is not the note of an index ({error}): name another folder, or "
            "remove this one and build the index anew."
        ) from error


class SearchIndex:
    """An index, opened for reading; `SearchIndex.open(folder)` opens the valid generation.

    Args:
        note: what the index is.
        generation: the folder with its files.

    Raises:
        ValueError: if a file is missing or damaged.
        ImportError: if usearch, bm25s or rjieba is not installed.
    """

    def __init__(self, note: IndexNote, generation: Path):
        need_packages("usearch", "bm25s", "rjieba")
        from bm25s import BM25
        from usearch.index import Index

        self.note = note
        try:
            self._starts = np.load(generation / STARTS, mmap_mode="r")
            with open(generation / PASSAGES, "rb") as file:
                self._passages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.graph = Index.restore(str(generation / VECTORS), view=True)
            self._words = BM25.load(generation / WORDS, mmap=True, show_progress=False)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            raise ValueError(f"{generation} is damaged ({error}): build the index anew.") from error
        counts = {len(self._starts), len(self.graph or ()), self._words.scores["num_docs"]}
        if counts != {self.note.passages}:
            raise ValueError(f"{generation} is damaged: its parts differ. Build the index anew.")
        self.graph.expansion_search = SEARCH_VIEW

    @classmethod
    def open(cls, folder: Path) -> "SearchIndex":
        """The index in a folder.

        Raises:
            ValueError, OSError: if it holds none, or a file of it is missing or damaged.
            ImportError: if usearch, bm25s or rjieba is not installed.
        """
        note = read_note(folder)
        while True:
            try:
                return cls(note, folder / f"{GENERATION}{note.generation}")
            except ValueError:
                # A build may have replaced and removed this generation in the meantime.
                if (new := read_note(folder)) == note:
                    raise
                note = new

    def passage(self, number: int) -> Passage:
        """One passage by its number."""
        # Not by a cursor, which several threads would share.
        start = int(self._starts[number])
        return Passage(*json.loads(self._passages[start : self._passages.find(b"\n", start)]))

    def passages(self) -> Iterator[Passage]:
        """All passages, in the order of their numbers."""
        return map(self.passage, range(self.note.passages))

    def by_vector(
        self, vector: np.ndarray, top: int, exact: bool | None = None
    ) -> list[tuple[int, float]]:
        """(number, cosine) of the nearest passages to a vector (size,) of length 1.

        Args:
            exact: compare with all passages instead of following the graph; by default where there
                are at most `EXACT_UP_TO`.
        """
        if exact is None:
            exact = self.note.passages <= EXACT_UP_TO
        found = self.graph.search(vector, min(top, self.note.passages), exact=exact)
        return [
            (int(key), 1 - float(distance))
            for key, distance in zip(found.keys, found.distances, strict=True)
        ]

    def by_words(self, query: str, top: int) -> list[tuple[int, float]]:
        """(number, BM25) of the passages that share words with a query, best first."""
        ids = self._words.get_tokens_ids(words_of(query))
        if not ids:
            return []
        scores = self._words.get_scores_from_ids(ids)
        best = np.argpartition(-scores, min(top, len(scores) - 1))[:top]
        best = best[np.lexsort((best, -scores[best]))]
        return [(int(number), float(scores[number])) for number in best if scores[number] > 0]

    def hybrid(self, query: str, vector: np.ndarray, top: int) -> list[tuple[int, float]]:
        """(number, sum of reciprocal ranks) over both rankings, best first."""
        scores: dict[int, float] = {}
        for ranking in (self.by_vector(vector, DEPTH), self.by_words(query, DEPTH)):
            for rank, (number, _) in enumerate(ranking, 1):
                scores[number] = scores.get(number, 0.0) + 1 / (RANK_CONSTANT + rank)
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:top]

    def ranking(
        self, query: str, vector: np.ndarray | None, top: int, by: str
    ) -> list[tuple[int, float]]:
        """(number, score) of the best passages in one of `WAYS`; "words" needs no vector.

        Raises:
            ValueError: if it is none of them.
        """
        match by:
            case "words":
                return self.by_words(query, top)
            case "vectors":
                return self.by_vector(vector, top)
            case "hybrid":
                return self.hybrid(query, vector, top)
        raise ValueError(f"by: {by!r}; one of {', '.join(WAYS)} expected.")

    def hits(self, ranking: Sequence[tuple[int, float]]) -> list[Hit]:
        """The passages of a ranking."""
        return [Hit(score, self.passage(number)) for number, score in ranking]


def write_index(
    folder: Path,
    note: IndexNote,
    passages: list[Passage],
    vectors: np.ndarray,
    old: SearchIndex | None,
    report: Callable[[str], None],
) -> IndexNote:
    """Writes a generation and makes it the valid one.

    Args:
        note: which model; number of passages and generation are set here.
        passages: all of them, those of `old` first.
        vectors: (new passages, size) of length 1, in the order of the passages.
        old: the index that is added to; None begins with nothing.
        report: is told what is being done.

    Raises:
        OSError: if the disk is full; the old index is still there and valid.
    """
    generation = read_note(folder).generation + 1 if (folder / NOTE).exists() else 1
    note = replace(note, passages=len(passages), generation=generation)
    remove_all_but(folder, generation - 1)
    with new_folder(folder / f"{GENERATION}{generation}") as temporary:
        report("writing passages")
        _write_passages(temporary, passages)
        report("counting words")
        _write_words(temporary / WORDS, passages)
        report("connecting vectors")
        _write_graph(temporary / VECTORS, vectors, old)
        SearchIndex(note, temporary)  # can be read
    write_json(folder / NOTE, asdict(note))
    remove_all_but(folder, generation)
    return note


def remove_all_but(folder: Path, generation: int) -> None:
    """Removes other generations, and what a killed build has left of one."""
    for other in filter(is_generation, folder.iterdir()):
        if other.name != f"{GENERATION}{generation}":
            shutil.rmtree(other, ignore_errors=True)


def is_generation(path: Path) -> bool:
    """Whether a folder is a generation of an index, complete or not, and holds nothing else."""
    return (
        re.fullmatch(rf"\.?{GENERATION}\d+(\..+)?", path.name) is not None
        and path.is_dir()
        and {part.name for part in path.iterdir()} <= {PASSAGES, STARTS, VECTORS, WORDS}
    )


def _write_passages(folder: Path, passages: list[Passage]) -> None:
    starts = np.zeros(len(passages), dtype=np.int64)
    with open(folder / PASSAGES, "wb") as file:
        for number, passage in enumerate(passages):
            starts[number] = file.tell()
            row = [passage.text, passage.file, passage.line]
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
    np.save(folder / STARTS, starts)


def _write_words(folder: Path, passages: list[Passage]) -> None:
    from bm25s import BM25

    words = BM25()
    words.index([words_of(passage.text) for passage in passages], show_progress=False)
    words.save(folder, show_progress=False)


def _write_graph(file: Path, vectors: np.ndarray, old: SearchIndex | None) -> None:
    from usearch.index import Index

    if old is None:
        graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=EDGES)
    else:
        graph = old.graph.copy()
    graph.expansion_add = GROWTH_VIEW
    first = len(graph)
    graph.add(np.arange(first, first + len(vectors)), np.asarray(vectors, dtype=np.float32))
    try:
        graph.save(str(file))
    except RuntimeError as error:
        raise OSError(f"{file} could not be written ({error}): is the disk full?") from error
