"""Pairs of a short text and the passage that it belongs to, drawn from documents without labels.

    python -m embedding.crops --documents everyday/*.jsonl.xz --count 150000 --exclude TASKS \\
        --output crops.jsonl

A passage is a run of whole sentences. What belongs to it is the title above it, or some words in a
row of one of its sentences, which in half of the pairs is then taken out of the passage (the
inverse cloze task, arXiv:1906.00300, and crops, arXiv:2112.09118). A document gives a pair, a long
one a pair for each 4,000 characters; of all pairs, `--count` are drawn by the seed. A share of the
passages (`--traditional`) is turned into traditional characters and the words of Taiwan, half of
them with their queries, so that the two scripts find each other. A pair with a sentence of the test
sets in TASKS is left out. Rows have `query` and `passage`, for a task of kind `pairs`.
"""

import argparse
import heapq
import re
from collections.abc import Iterator
from pathlib import Path

import rjieba

from embedding.held_out import HeldOut
from embedding.scripts import to_traditional
from pretraining.command import readable_errors
from pretraining.data.corpus import read_documents
from pretraining.data.draws import draw
from pretraining.data.sentences import sentence_spans
from pretraining.files import check_file, write_json_lines

CHARACTERS_PER_PAIR = 4_000
# Of a passage, on a logarithmic scale, so that each doubling is as frequent as the next.
SHORTEST_PASSAGE, LONGEST_PASSAGE = 40, 512
SHORTEST_QUERY, LONGEST_QUERY = 4, 60
TITLES, TAKEN_OUT, QUERIES_TOO = 0.7, 0.5, 0.5  # shares

_WORDS = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # without marks at either end

Pair = tuple[str, str]


def pair_of(text: str, seed: int, number: int = 0) -> tuple[Pair, list[str]] | None:
    """One pair of a document, and the sentences that are in it; None if there is none at the place
    that is drawn.

    Args:
        number: of the pair in its document; each is drawn independently.
    """

    def drawn(purpose: str) -> float:
        return draw(seed, f"{purpose} {number}", text)

    sentences = [text[start:end] for start, end in sentence_spans(text)]
    with_title = number == 0 and _is_title(text) and drawn("title") < TITLES
    first = 1 if with_title else int(drawn("place") * len(sentences))
    length = SHORTEST_PASSAGE * (LONGEST_PASSAGE / SHORTEST_PASSAGE) ** drawn("length")
    passage: list[str] = []
    while first < len(sentences) and sum(map(len, passage)) < length:
        passage.append(" ".join(sentences[first].split()))
        first += 1
    if with_title:
        query, held = sentences[0], [sentences[0], *passage]
    elif passage:
        at, held = int(drawn("sentence") * len(passage)), list(passage)
        query = _words_in_a_row(passage[at], drawn("share"), drawn("offset"))
        if drawn("taken out") < TAKEN_OUT:
            del passage[at]
    whole = "".join(passage)[:LONGEST_PASSAGE]
    if len(whole) < SHORTEST_PASSAGE or not SHORTEST_QUERY <= len(query) <= LONGEST_QUERY:
        return None
    return (query, whole), held


def _is_title(text: str) -> bool:
    """Whether a document begins with a line that reads like a title."""
    line = text.lstrip().split("\n", 1)[0].strip()
    return len(line) <= LONGEST_QUERY // 2 and sentence_spans(text)[:1] == [
        (len(text) - len(text.lstrip()), len(text) - len(text.lstrip()) + len(line))
    ]


def _words_in_a_row(sentence: str, share: float, offset: float) -> str:
    """At least a third of the words of a sentence, without marks around them.

    Args:
        share, offset: from 0 to 1: how many words, and where they begin.
    """
    words = rjieba.cut(sentence)
    count = max(round(len(words) * (1 + 2 * share) / 3), 1)
    start = round((len(words) - count) * offset)
    found = _WORDS.search("".join(words[start : start + count]))
    return found[0] if found else ""


def in_traditional(pair: Pair, seed: int, share: float) -> Pair:
    """A pair, or in a share of the pairs its passage, or both texts, in traditional characters."""
    query, passage = pair
    text = "\n".join(pair)
    if draw(seed, "traditional", text) >= share:
        return pair
    if draw(seed, "query, too", text) < QUERIES_TOO:
        query = to_traditional(query)
    return query, to_traditional(passage)


def pairs_of(
    paths: list[str], seed: int, traditional: float, held_out: HeldOut | None
) -> Iterator[Pair]:
    """The pairs of all documents, each once.

    Raises:
        CorpusError: if a document cannot be read.
    """
    seen: set[int] = set()
    for document in read_documents(paths):
        for number in range(1 + len(document.text) // CHARACTERS_PER_PAIR):
            found = pair_of(document.text, seed, number)
            if not found:
                continue
            pair = in_traditional(found[0], seed, traditional)
            if (key := hash(pair)) in seen:
                continue
            seen.add(key)
            if held_out and held_out.holds_any({found[0][0], *found[1], *pair}):
                continue
            yield pair


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", nargs="+", required=True, help="files as for prepare_corpus")
    parser.add_argument("--count", type=int, required=True, help="pairs to draw")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--traditional", type=float, default=0.0, help="share of passages in traditional characters"
    )
    parser.add_argument("--exclude", type=Path, help="folder of tasks whose texts are left out")
    args = parser.parse_args()
    if args.count < 1:
        parser.error("--count: at least one pair")
    if not 0 <= args.traditional <= 1:
        parser.error("--traditional: a share from 0 to 1")
    with readable_errors("crops"):
        check_file(args.output)
        held_out = HeldOut(args.exclude) if args.exclude else None
        found = pairs_of(args.documents, args.seed, args.traditional, held_out)
        pairs = heapq.nsmallest(
            args.count, found, key=lambda pair: draw(args.seed, "pair", "\n".join(pair))
        )
    rows = [{"query": query, "passage": passage} for query, passage in pairs]
    write_json_lines(args.output, rows)
    characters = sum(len(query) + len(passage) for query, passage in pairs)
    print(f"{args.output}: {len(rows):,} pairs, {characters:,} characters")


if __name__ == "__main__":
    main()
