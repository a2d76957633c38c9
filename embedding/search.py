"""Search in your own texts, by meaning and by words.

    python -m embedding.search build notes/*.txt faq.csv --index runs/index
    python -m embedding.search add more.jsonl --index runs/index
    python -m embedding.search query 图书馆几点关门 --index runs/index

`build` cuts files into passages and writes an index; `add` puts more files into it; `query` prints
what is found, with file and line. Without a text, `query` reads questions from standard input, one
a line. A build that is killed leaves the old index as it was, and goes on when it is started again.
"""

import argparse
import functools
import io
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer

from embedding.architectures import architecture_of
from embedding.distill import start_or_resume, write_vectors
from embedding.encoder import DTYPES, ROOT, Opening
from embedding.lexical import need_packages
from embedding.passages import TABLES, Passage, read_passages
from embedding.reranker import Reranker
from embedding.search_index import (
    GENERATION,
    NOTE,
    WAYS,
    Hit,
    IndexNote,
    SearchIndex,
    is_generation,
    read_note,
    write_index,
)
from embedding.teacher import NOTE as TEACHER_NOTE
from embedding.teacher import TeacherNote, digest_of, open_vectors
from pretraining.command import readable_errors
from pretraining.data.corpus import passed_over
from pretraining.files import half_character

# The model that a clone brings.
SHIPPED = ROOT / "models/embedding"
UNFINISHED, LOCK = "unfinished", ".lock"
# How many passages a reranker reads.
RERANKED = 50


def distinct(passages: Iterable[Passage], known: set[str]) -> tuple[list[Passage], int]:
    """The passages whose text is new, and how many are not; the first of equals is kept."""
    new, repeated = [], 0
    for passage in passages:
        if passage.text in known:
            repeated += 1
        else:
            known.add(passage.text)
            new.append(passage)
    return new, repeated


def check_room(folder: Path, passages: list[Passage], size: int, already: int) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        OSError: if it cannot; the old index and the new one stand side by side for a while.
    """
    characters = sum(len(passage.text) for passage in passages)
    # UTF-8 twice, the words of BM25, fp16 vectors twice, and the edges of the graph.
    needed = already + 14 * characters + len(passages) * (4 * size + 800)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder}: the index takes about {needed / 2**20:,.0f} MB, but "
            f"{free / 2**20:,.0f} MB are free. Make room; nothing was changed."
        )


def document_prompt(model: SentenceTransformer) -> str | None:
    """The name of the prompt that `encode_document` would use."""
    return next((name for name in ("document", "passage", "corpus") if name in model.prompts), None)


def open_for(folder: Path, opening: Opening) -> SearchIndex:
    """The index in a folder, for this model.

    Raises:
        ValueError: if there is none, or it is that of another model.
    """
    index = SearchIndex.open(folder)
    if opening.fingerprint() != index.note.fingerprint:
        raise ValueError(
            f"{folder} was made with another model, other weights or prompts "
            f"({index.note.model}), or by an older version of this code. Name that model with "
            "--model, or build the index anew."
        )
    return index


def index_passages(
    folder: Path,
    found: Iterable[Passage],
    opening: Opening,
    batch_size: int = 64,
    adding: bool = False,
) -> IndexNote:
    """Makes an index of passages, or adds them to the one that is there.

    Args:
        folder: of the index; a new index takes the place of an old one when it is complete.
        opening: the model. No vector is computed twice when a killed build is started again.
        adding: keep what the index has.

    Raises:
        ValueError: if there is nothing to index, the folder holds something else, or `adding` finds
            the index of another model.
        OSError: if the disk is full.
    """
    if not adding and folder.is_dir() and not (folder / NOTE).exists():
        # But for what an earlier build left that was stopped.
        if others := [path.name for path in folder.iterdir() if not _is_left(path)]:
            raise ValueError(f"{folder} holds {min(others)}, no index. Name another folder.")
    elif not adding and folder.is_dir():
        read_note(folder)  # else it is known after all vectors that the folder is another's
    old = open_for(folder, opening) if adding else None
    kept = list(old.passages()) if old else []
    passages, repeated = distinct(found, {passage.text for passage in kept})
    if not passages:
        if old is None:
            raise ValueError("The files hold no text.")
        print(f"Nothing new: all {repeated:,} passages are in the index already.")
        return old.note
    print(f"passages: {len(passages):,}; repeated ones left out: {repeated:,}")
    model = opening.open()
    size = model.get_embedding_dimension()
    folder.mkdir(parents=True, exist_ok=True)
    used = sum(file.stat().st_size for file in folder.glob(f"{GENERATION}*/**/*"))
    check_room(folder, passages, size, used if adding else 0)
    texts = [passage.text for passage in passages]
    weights = opening.fingerprint()
    wanted = TeacherNote(
        opening.path, weights, document_prompt(model), digest_of(texts), len(texts), size
    )
    work = folder / UNFINISHED
    if work.is_dir() and not _is_left(work):
        raise ValueError(f"{work} is no part of the index; move it away.")
    try:
        progress = start_or_resume(work, wanted, texts)
    except ValueError:  # what a build of other texts has left
        shutil.rmtree(work)
        progress = start_or_resume(work, wanted, texts)
    write_vectors(model, texts, work, progress, batch_size)
    note = write_index(
        folder,
        IndexNote(_wherever(opening).name, weights, size, 0, 0),
        [*kept, *passages],
        open_vectors(work, progress, "r"),
        old,
        lambda step: print(step, flush=True),
    )
    shutil.rmtree(work)
    return note


def _wherever(opening: Opening) -> Opening:
    """The same model by a name that is true in every working directory."""
    if Path(opening.path).is_dir():
        return replace(opening, path=os.path.abspath(opening.path))
    return opening


def _is_left(path: Path) -> bool:
    """Whether it is a part of an index, complete or not, which a build may remove."""
    if path.name == UNFINISHED:
        return (path / TEACHER_NOTE).is_file() or not any(path.iterdir())
    return path.name == LOCK or is_generation(path)


def open_reranker(path: str) -> Reranker:
    """The reranker in a folder.

    Raises:
        ValueError: if the folder holds another kind of model, or none.
    """
    opening, architecture = Opening.of(path), architecture_of(path)
    if architecture == "bi_encoder":
        raise ValueError(
            f"{path} is no reranker: train one with architecture cross_encoder or late_interaction."
        )
    return Reranker(opening.open(architecture))


def opening_of(folder: Path, model: str | None, dtype: str | None = None) -> Opening:
    """The model of an index: the one that its user names, or that of its note.

    Raises:
        ValueError: if the note's brings code that is not this repository's; an index may come from
            a stranger.
    """
    named = Opening.of(model or read_note(folder).model, dtype)
    if model:
        return named
    known = named.brings_known_code()
    if not known and Path(named.path).is_dir():
        raise ValueError(
            f"{folder} was made with {named.path}, whose code is not that of this repository and "
            f"would run. If you trust it, name it: --model {named.path}"
        )
    return replace(named, runs_code=known)


class Searcher:
    """An index together with its model.

    Args:
        folder: the index.
        model: where the model is now, if not where it was.
        reranker: a cross-encoder or late-interaction model that orders the best 50 anew.

    Raises:
        ValueError: if there is no index, the model is not that of the index, or the reranker none.
    """

    def __init__(self, folder: Path, model: str | None = None, reranker: str | None = None):
        self._opening = opening_of(folder, model)
        self.index = open_for(folder, self._opening)
        self.reranker = reranker and open_reranker(reranker)

    @functools.cached_property
    def model(self) -> SentenceTransformer:
        """The model, opened when it is needed: words are searched without it."""
        return self._opening.open()

    def search(self, query: str, top: int = 10, by: str = "hybrid") -> list[Hit]:
        """The passages that answer a query, best first.

        Args:
            by: "vectors" ranks by meaning (cosine), "words" by BM25, "hybrid" by both.

        Raises:
            ValueError: if the query is empty, or no text.
        """
        if not query.strip():
            raise ValueError("The question is empty.")
        if half_character(query):
            raise ValueError("The question is not text in UTF-8.")
        if self.reranker is None:
            return self.index.hits(self._ranking(query, top, by))
        found = self.index.hits(self._ranking(query, max(top, RERANKED), by))
        texts = [hit.passage.text for hit in found]
        scores = self.reranker.similar([query] * len(texts), texts).tolist()
        rescored = [replace(hit, score=score) for hit, score in zip(found, scores, strict=True)]
        return sorted(rescored, key=lambda hit: -hit.score)[:top]

    def _ranking(self, query: str, top: int, by: str) -> list[tuple[int, float]]:
        vector = None
        if by != "words":
            vector = self.model.encode_query(query, normalize_embeddings=True)
        return self.index.ranking(query, vector, top, by)


def show(hits: list[Hit]) -> None:
    """Prints hits: rank, score, text, and where it stands."""
    if not hits:
        print("Nothing found.")
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>2}  {hit.score:.3f}  {hit.passage.text}")
        print(f"           {hit.passage.file}, line {hit.passage.line}")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make an index, or make it anew")
    add = commands.add_parser("add", help="put more files into an index")
    query = commands.add_parser("query", help="search")
    for command in (build, add):
        command.add_argument("files", nargs="+", help=".txt, .jsonl, .csv, .tsv, .parquet, folders")
        command.add_argument("--text_field", default="text", help="key or column with the text")
        command.add_argument("--length", type=positive, default=200, help="characters of a passage")
        command.add_argument("--batch_size", type=positive, default=64)
        command.add_argument("--dtype", choices=DTYPES, help="default: that of config.json")
    for command in (build, add, query):
        command.add_argument("--index", type=Path, required=True, help="folder")
    build.add_argument(
        "--model", default=str(SHIPPED), help="folder, or name on the Hub (models/embedding)"
    )
    for command in (add, query):
        command.add_argument("--model", help="default: where it was when the index was built")
    query.add_argument("text", nargs="?", help="default: lines of standard input")
    query.add_argument("--top", type=positive, default=10)
    query.add_argument("--rerank", metavar="FOLDER", help="model that orders the best anew")
    query.add_argument("--by", choices=WAYS, default="hybrid")
    return parser.parse_args()


def index_files(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    need_packages("usearch", "bm25s", "rjieba")
    opening = opening_of(args.index, args.model, args.dtype)
    index = args.index.resolve()
    if inside := next((path for path in args.files if Path(path).resolve() in index.parents), None):
        raise ValueError(
            f"{args.index} lies in {inside}, so the index would be read as a source the next time. "
            "Choose a folder beside it."
        )
    for ending, count in passed_over(args.files).items():
        if not ending.lower().endswith(TABLES):
            print(f"left out, no text files: {count:,} × {ending}", file=sys.stderr)
    args.index.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.index / LOCK, timeout=0):
            note = index_passages(
                args.index,
                read_passages(args.files, args.text_field, args.length),
                opening,
                args.batch_size,
                adding=args.command == "add",
            )
    except Timeout as error:
        raise ValueError(f"{args.index}: another build is under way.") from error
    print(f"{args.index}: {note.passages:,} passages, {time.perf_counter() - began:,.0f} s")


def answer(args: argparse.Namespace) -> None:
    searcher = Searcher(args.index, args.model, args.rerank)
    if args.text is not None:
        show(searcher.search(args.text, args.top, args.by))
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    for line in sys.stdin:
        if line.strip():
            try:
                show(searcher.search(line.strip(), args.top, args.by))
            except ValueError as error:  # the next one may be better
                print(error, file=sys.stderr)
            print(flush=True)


def main() -> None:
    args = parse()
    with readable_errors("search"):
        (answer if args.command == "query" else index_files)(args)


if __name__ == "__main__":
    main()
