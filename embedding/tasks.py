"""Public Chinese tasks for sentence vectors: similarity, ranking, retrieval.

Each reader takes the folder of unpacked tasks (`stsb/`, `simclue/`, …, in their original formats)
and returns `Pairs`, `Ranking` or `Retrieval`. Nothing here trains: `TASKS` names the test sets,
`embedding/held_out.py` keeps their texts out of training, and `embedding/leakage.py` checks it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pretraining.files import read_json, read_json_lines, read_table


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts with a score each: grades (STS) or 0 and 1.

    `binary` says that the scores are classes, so that an area under the curve exists.
    """

    left: list[str]
    right: list[str]
    scores: list[float]
    binary: bool


@dataclass(frozen=True)
class Ranking:
    """Queries with a few candidates each, of which `best[i]` is the right one."""

    queries: list[str]
    candidates: list[list[str]]
    best: list[int]


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and for each query the index of its one relevant document."""

    queries: list[str]
    documents: list[str]
    relevant: list[int]


Task = Pairs | Ranking | Retrieval


def rows_of_tsv(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of a file of tab-separated values; empty lines are skipped.

    Raises:
        ValueError: if a line has another number of fields; the message names file and line.
    """
    for number, row in read_table(file, header=False):
        if len(row) != columns:
            raise ValueError(
                f"{file}, line {number}: {len(row)} fields, not {columns} separated by tabs."
            )
        yield number, list(row.values())


def rows_of_jsonl(file: Path, *keys: str) -> Iterator[tuple[int, list]]:
    """Line numbers and the values of the keys of a JSONL file; empty lines are skipped.

    Raises:
        ValueError: if a line is not a JSON object with all keys; the message names file and line.
    """
    for number, row in read_json_lines(file):
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"{file}, line {number}: no key {', '.join(missing)}; has {list(row)}")
        yield number, [row[key] for key in keys]


def _scored_tsv(file: Path, binary: bool) -> Pairs:
    pairs = Pairs([], [], [], binary)
    for number, (left, right, score) in rows_of_tsv(file, 3):
        try:
            pairs.scores.append(float(score))
        except ValueError:
            raise ValueError(f"{file}, line {number}: score {score!r} is not a number.") from None
        pairs.left.append(left)
        pairs.right.append(right)
    if not pairs.scores:
        raise ValueError(f"{file} holds no pairs.")
    return pairs


def _labeled_pairs(file: Path, scores: dict[str, float | None]) -> Pairs:
    """Pairs with the score of their label; labels without a score are left out."""
    pairs = Pairs([], [], [], binary=True)
    for number, (left, right, label) in rows_of_jsonl(file, "sentence1", "sentence2", "label"):
        if str(label) not in scores:
            raise ValueError(
                f"{file}, line {number}: label {label!r}; one of {', '.join(scores)} expected."
            )
        if (score := scores[str(label)]) is not None:
            pairs.left.append(left)
            pairs.right.append(right)
            pairs.scores.append(score)
    if not pairs.scores:
        raise ValueError(f"{file} holds no pairs.")
    return pairs


def rows_of_squad(file: Path) -> Iterator[tuple[str, str, int]]:
    """(context, question, where its first answer starts, or 0) of a file in SQuAD's format.

    Raises:
        ValueError: if it is not in that format; the message names the file.
    """
    try:
        for article in read_json(file)["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                if not context.strip():
                    raise ValueError(f"{file}: a paragraph's context is empty.")
                for question in paragraph["qas"]:
                    answers = question.get("answers") or [{"answer_start": 0}]
                    yield context, question["question"], int(answers[0]["answer_start"])
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is not in SQuAD's format: {error!r}.") from error


def stsb(folder: Path) -> Pairs:
    """STS-B in Chinese, test: grades from 0 to 5."""
    return _scored_tsv(folder / "stsb/sts-b-test.txt", binary=False)


def stsb_dev(folder: Path) -> Pairs:
    """STS-B in Chinese, dev."""
    return _scored_tsv(folder / "stsb/sts-b-dev.txt", binary=False)


def afqmc(folder: Path) -> Pairs:
    """AFQMC, dev: do two customers ask the same?"""
    return _scored_tsv(folder / "afqmc/dev.txt", binary=True)


def simclue(folder: Path) -> Pairs:
    """SimCLUE, `test_public`: do two sentences mean the same?"""
    file = folder / "simclue/test_public.json"
    return _labeled_pairs(file, {"0": 0.0, "1": 1.0})


def ocnli(folder: Path) -> Pairs:
    """OCNLI, dev: does the first sentence entail the second? Pairs labeled "-" are left out."""
    scores = {"entailment": 1.0, "neutral": 0.0, "contradiction": 0.0, "-": None}
    return _labeled_pairs(folder / "ocnli/dev.json", scores)


def triclue(folder: Path) -> Ranking:
    """TriCLUE (small), test: which of two sentences means what the first one does?"""
    keys = ("sentence_0", "sentence_1", "sentence_2", "label")
    rows = [row for _, row in rows_of_jsonl(folder / "simclue/triclue_small/test.json", *keys)]
    return Ranking(
        [row[0] for row in rows], [row[1:3] for row in rows], [int(row[3]) - 1 for row in rows]
    )


def simclue_ranks(folder: Path) -> Ranking:
    """SimCLUE's `test_public`: sentences paired with one of the same meaning and with others.

    A sentence with several of the same meaning gives a query for each of them.
    """
    pairs = simclue(folder)
    partners: dict[str, dict[str, float]] = {}
    for left, right, score in zip(pairs.left, pairs.right, pairs.scores, strict=True):
        partners.setdefault(left, {})[right] = score
    queries, candidates = [], []
    for query, scores in partners.items():
        wrong = [text for text, score in scores.items() if score == 0]
        for right in (text for text, score in scores.items() if score and wrong):
            queries.append(query)
            candidates.append([right, *wrong])
    return Ranking(queries, candidates, [0] * len(queries))


def questions(*files: Path) -> Retrieval:
    """Questions and the paragraph that answers each, of files in SQuAD's format."""
    documents: dict[str, int] = {}
    queries: dict[str, int] = {}
    for file in files:
        for context, question, _ in rows_of_squad(file):
            queries.setdefault(question, documents.setdefault(context, len(documents)))
    return Retrieval(list(queries), list(documents), list(queries.values()))


def cmrc(folder: Path) -> Retrieval:
    """CMRC 2018, dev: question → its paragraph among 848 (encyclopedia)."""
    return questions(folder / "cmrc2018/cmrc2018_dev.json")


def cmrc_trial(folder: Path) -> Retrieval:
    """CMRC 2018, trial: question → its paragraph among 256."""
    return questions(folder / "cmrc2018/cmrc2018_trial.json")


def drcd(folder: Path) -> Retrieval:
    """DRCD, test: question → its paragraph among 1,000 (encyclopedia, traditional characters)."""
    return questions(folder / "drcd/DRCD_test.json")


def drcd_dev(folder: Path) -> Retrieval:
    """DRCD, dev: question → its paragraph."""
    return questions(folder / "drcd/DRCD_dev.json")


def csl(folder: Path) -> Retrieval:
    """CSL: title of a paper → its abstract among 2,000."""
    abstracts: dict[str, int] = {}
    titles: dict[str, int] = {}
    for part in ("dev", "test"):
        for _, (_, abstract, title) in rows_of_tsv(folder / f"csl_benchmark/ts/{part}.tsv", 3):
            titles.setdefault(title, abstracts.setdefault(abstract, len(abstracts)))
    return Retrieval(list(titles), list(abstracts), list(titles.values()))


TASKS: dict[str, Callable[[Path], Task]] = {
    "stsb": stsb,
    "simclue": simclue,
    "afqmc": afqmc,
    "ocnli": ocnli,
    "triclue": triclue,
    "simclue_ranks": simclue_ranks,
    "cmrc": cmrc,
    "drcd": drcd,
    "csl": csl,
    "stsb_dev": stsb_dev,
    "drcd_dev": drcd_dev,
    "cmrc_trial": cmrc_trial,
}
# To choose a recipe by; no part of a comparison.
DEV = ("stsb_dev", "drcd_dev", "cmrc_trial")


def read_task(name: str, folder: Path) -> Task:
    """One of `TASKS`.

    Raises:
        ValueError, OSError: if its files are not there or not in their format.
    """
    try:
        return TASKS[name](folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} is missing: unpack the task's archive into {folder}, "
            "or, to evaluate without this task, use --only."
        ) from error
