"""Reads tasks that choose one of several texts: C3 (reading comprehension) and ChID (idioms).

Readers return examples {"id", "group", "text", "text_pair", "choices", "label"}, `label` being the
index of the right choice or None, and a count of the labels that cannot be used (none here).
"""

import re
from collections import Counter
from pathlib import Path

from finetuning.records import not_empty
from pretraining.files import filled, read_json, read_json_lines, read_table

BLANK = "#idiom#"  # the blank that an example is about
OTHER_BLANK = "#other idiom#"
_MARK = re.compile(r"#idiom\d*#")


def read_c3(*files: Path) -> tuple[list[dict], Counter]:
    """Reads C3: a list of [[passage lines], [{"question", "choice", "answer"}], id] in each file.

    C3 comes as dialogues (d) and other texts (m); give both files. `text` is the passage, its lines
    joined by line breaks, `text_pair` the question, `group` the id of the passage. In CLUE's hidden
    test the questions have an "id", and passages need none.

    Raises:
        ValueError: on another structure, a question without choices, or an answer that is not one
            of them, with file, record and key.
    """
    examples = []
    for file in files:
        for number, record in enumerate(read_json(file), start=1):
            where = f"{file}, record {number}"
            try:
                lines, questions, *names = record
                name = names[0] if names else number
                if not isinstance(lines, list) or not isinstance(questions, list):
                    raise TypeError
                text = "\n".join(lines)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{where}: expected [[lines], [questions], id], got {str(record)[:80]}."
                ) from error
            for index, question in enumerate(questions):
                if not isinstance(question, dict):
                    raise ValueError(
                        f"{where}: a question must be an object with 'question', 'choice' and "
                        f"'answer', got {str(question)[:80]}."
                    )
                examples.append(
                    {
                        "id": question.get("id", f"{name}-{index}"),
                        "group": name,
                        "text": filled(text, f"{where}: 'passage'"),
                        "text_pair": filled(question.get("question"), f"{where}: 'question'"),
                        "choices": _choices(question.get("choice"), "choice", where),
                        "label": _c3_label(question, where),
                    }
                )
    return not_empty(examples, *files), Counter()


def _choices(choices, key: str, where: str) -> list[str]:
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"{where}: {key!r} must list at least two texts, got {choices!r}.")
    return [filled(choice, f"{where}: {key!r}") for choice in choices]


def _c3_label(question: dict, where: str) -> int | None:
    answer, choices = question.get("answer"), question["choice"]
    if answer in (None, ""):
        return None
    if answer not in choices:
        raise ValueError(
            f"{where}: 'answer' {answer!r} is none of the choices {choices}; make it one of them."
        )
    return choices.index(answer)


def read_chid(file: Path) -> tuple[list[dict], Counter]:
    """Reads ChID, one JSON object a line, as FewCLUE or as CLUE gives it.

    FewCLUE: {"id", "content", "candidates", "answer"}, one blank "#idiom#" a text. CLUE: "content"
    is a list of texts that share "candidates", with blanks such as "#idiom000378#"; the answers lie
    beside `NAME.json` in `NAME_answer.json` (or .csv), from blank to index of its candidate.

    Each blank is an example. `text` marks it as `BLANK` and the others of the same text as
    `OTHER_BLANK`; all blanks of a line have one `group`, in which no idiom is right twice.

    Raises:
        ValueError: on a line without blanks or candidates, or a label that is no index of one, with
            file, line and key.
    """
    answers = _chid_answers(file)
    examples = []
    for number, record in read_json_lines(file):
        where = f"{file}, line {number}"
        choices = _choices(record.get("candidates"), "candidates", where)
        content = record.get("content")
        texts = content if isinstance(content, list) else [content or ""]
        before = len(examples)
        for text in texts:
            for blank in _MARK.finditer(filled(text, f"{where}: 'content'")):
                mark = blank.group()
                label = record.get("answer") if mark == BLANK else answers.get(mark)
                examples.append(
                    {
                        "id": record.get("id", number - 1) if mark == BLANK else mark,
                        "group": number - 1,
                        "text": _marked(text, blank),
                        "text_pair": None,
                        "choices": choices,
                        "label": _index(label, choices, where),
                    }
                )
        blanks = len(examples) - before
        if not blanks or (blanks > 1 and isinstance(content, str)):
            raise ValueError(
                f"{where}: 'content' has {blanks} blanks; a text needs one {BLANK!r}, or several "
                "texts in a list blanks with names of their own such as '#idiom000378#'."
            )
    return not_empty(examples, file), Counter()


def _chid_answers(file: Path) -> dict[str, int]:
    table = file.with_name(f"{file.stem}_answer.json")
    if table.exists():
        return read_json(table)
    table = table.with_suffix(".csv")
    if table.exists():
        return {row[0]: int(row[1]) for _, row in read_table(table, header=False)}
    return {}


def _marked(text: str, blank: re.Match) -> str:
    left, right = text[: blank.start()], text[blank.end() :]
    return _MARK.sub(OTHER_BLANK, left) + BLANK + _MARK.sub(OTHER_BLANK, right)


def _index(label, choices: list[str], where: str) -> int | None:
    if label is None:
        return None
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise ValueError(
            f"{where}: the answer {label!r} is no index of the {len(choices)} candidates; "
            f"write 0 to {len(choices) - 1}."
        )
    return label
