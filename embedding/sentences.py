"""Plain sentences and passages for a teacher, drawn from documents or taken from a run's tasks.

    python -m embedding.sentences --documents everyday/*.jsonl.xz --output sentences.txt \\
        --count 200000 --exclude TASKS
    python -m embedding.sentences --run RUN.yaml --count 60000 --longest 60 \\
        --output task-texts.txt
    python -m embedding.sentences --vocabulary . --output words.txt

One half of the documents is cut into sentences, the other into passages that end with the sentence
that reaches a length drawn from 32 to 256 characters; of all distinct pieces within the lengths,
`--count` are drawn by the seed. A text of the test sets in TASKS, in whatever punctuation or
script, is left out. With --run, they are drawn from the texts of the run's tasks that it would
train on; without a count, these are written as they are. With --vocabulary, they are the texts of a
model's tokens, for `word_vectors`.
"""

import argparse
import dataclasses
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import AutoTokenizer

from embedding.bag_of_words import token_texts
from embedding.data import load_task
from embedding.held_out import HeldOut
from embedding.run_file import RunFile, load_run_file
from pretraining.command import readable_errors
from pretraining.data.corpus import read_documents
from pretraining.data.draws import draw
from pretraining.data.shortening import Shortening, shorten
from pretraining.files import check_file, write_text

SHORTEST, LONGEST = 5, 320


def pieces_of(paths: list[str], seed: int) -> Iterator[str]:
    """The pieces of all documents, each on one line.

    Raises:
        CorpusError: if a document cannot be read.
    """
    cut = Shortening(share=1.0, unit="mixed")
    for document in read_documents(paths):
        for piece in shorten(document.text, cut, seed):
            yield " ".join(piece.split())


def draw_pieces(
    pieces: Iterable[str],
    count: int,
    seed: int,
    held_out: HeldOut | None = None,
    longest: int = LONGEST,
) -> list[str]:
    """`count` distinct pieces, or all if there are fewer; which ones, seed and texts alone decide.

    The pieces with the smallest draws are kept, so memory holds no more than `count` of them.

    Args:
        longest: characters of a piece; longer ones are left out.
    """
    kept: list[tuple[float, str]] = []  # a heap, the largest draw first
    members: set[str] = set()
    for piece in pieces:
        if not SHORTEST <= len(piece) <= longest or piece in members:
            continue
        entry = (-draw(seed, "sentence", piece), piece)
        if len(kept) == count and entry <= kept[0]:
            continue
        if held_out is not None and held_out.holds(piece):
            continue
        members.add(piece)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        else:
            members.discard(heapq.heapreplace(kept, entry)[1])
    return [piece for _, piece in sorted(kept, reverse=True)]


def texts_of_run(run: RunFile) -> list[str]:
    """The distinct texts of all tasks of a run that have rows, each on one line.

    Raises:
        OSError, ValueError: if a file or row cannot be used.
    """
    held_out = HeldOut(run.exclude) if run.exclude else None
    texts: dict[str, None] = {}
    for task in run.tasks:
        if task.teacher is None:
            for row in load_task(task, run.seed, held_out).rows:
                texts |= dict.fromkeys(
                    " ".join(value.split()) for value in row.values() if isinstance(value, str)
                )
    return list(texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--documents", nargs="+", help="files as for prepare_corpus")
    source.add_argument("--run", type=Path, metavar="RUN.yaml")
    source.add_argument("--vocabulary", metavar="MODEL", help="folder, or name on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="text file, one piece a line")
    parser.add_argument("--count", type=int, help="pieces to draw (all texts of a run)")
    parser.add_argument("--longest", type=int, default=LONGEST, help="characters of a drawn piece")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exclude", type=Path, help="folder of tasks whose texts are left out")
    args = parser.parse_args()
    if args.documents and args.count is None:
        parser.error("--documents needs --count: how many pieces are drawn")
    if args.vocabulary and args.count is not None:
        parser.error("--vocabulary writes all of its words: leave --count out")
    if args.count is not None and args.count < 1:
        parser.error("--count: at least one piece")
    return args


def main() -> None:
    args = parse()
    with readable_errors("sentences"):
        check_file(args.output)
        if args.vocabulary:
            tokenizer = AutoTokenizer.from_pretrained(args.vocabulary, trust_remote_code=True)
            pieces = list(dict.fromkeys(filter(None, token_texts(tokenizer))))
        elif args.run:
            run = load_run_file(args.run)
            if args.exclude:
                run = dataclasses.replace(run, exclude=args.exclude)
            pieces = texts_of_run(run)
            if args.count is not None:
                pieces = draw_pieces(pieces, args.count, args.seed, longest=args.longest)
        else:
            held_out = HeldOut(args.exclude) if args.exclude else None
            found = pieces_of(args.documents, args.seed)
            pieces = draw_pieces(found, args.count, args.seed, held_out, args.longest)
    write_text(args.output, "".join(f"{piece}\n" for piece in pieces))
    print(f"{args.output}: {len(pieces):,} pieces, {sum(map(len, pieces)):,} characters")


if __name__ == "__main__":
    main()
