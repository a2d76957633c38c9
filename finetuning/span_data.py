"""Reads tasks whose labels are spans: entities (CLUENER2020) and answers (CMRC2018, DRCD).

Every reader returns the examples and a count of the labels that cannot be used, by reason. Spans
count in characters of the text, their end exclusive.
"""

from collections import Counter
from pathlib import Path

from finetuning.records import not_empty
from pretraining.files import filled, read_json, read_json_lines


def read_entities(file: Path) -> tuple[list[dict], Counter]:
    """Reads CLUENER2020: one JSON object a line, {"text", "label"}.

    "label" is {type: {words: [[first, last], …]}}, the last character inclusive.

    Returns:
        Examples {"id", "text", "entities": [[start, end, label], …]} by place in the text, and the
        entities left out because their words do not stand at their place. Without "label" (a test
        set), "entities" is None.

    Raises:
        ValueError: on a line that is not such an object, with file, line and key.
    """
    examples, skipped = [], Counter()
    for number, record in read_json_lines(file):
        where = f"{file}, line {number}"
        text = _text(record, "text", where)
        entities = None
        if "label" in record:
            entities = sorted(_entities(record["label"], text, where, skipped))
        examples.append({"id": record.get("id", number - 1), "text": text, "entities": entities})
    return not_empty(examples, file), skipped


def _text(record, key: str, where: str) -> str:
    return filled(record.get(key) if isinstance(record, dict) else None, f"{where}: {key!r}")


def _entities(labels, text: str, where: str, skipped: Counter) -> list[list]:
    found = []
    try:
        listed = [
            (label, words, first, last)
            for label, by_words in labels.items()
            for words, places in by_words.items()
            for first, last in places
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: 'label' must look like "
            f'{{"name": {{"words": [[first, last]]}}}}, got {labels!r}.'
        ) from error
    for label, words, first, last in listed:
        if not isinstance(first, int) or not isinstance(last, int):
            raise ValueError(
                f"{where}: the places of {words!r} must be numbers of characters, got "
                f"{[first, last]!r}."
            )
        if words and first >= 0 and text[first : last + 1] == words:
            found.append([first, last + 1, label])
        else:
            skipped["entity is not at its place"] += 1
    return found


def read_answers(file: Path) -> tuple[list[dict], Counter]:
    """Reads CMRC2018 and DRCD in SQuAD's format.

    An answer that does not stand at its offset counts as a right answer all the same, as it does
    in the official scores, but nothing can be trained on it: its "start" is None.

    Returns:
        Examples {"id", "context", "question", "answers": [{"text", "start"}, …]}, each with at
        least one answer, and a count of the answers without a start.

    Raises:
        ValueError: if the file has another structure, with file, question and key.
    """
    content = read_json(file)
    examples, skipped = [], Counter()
    try:
        paragraphs = [part for article in content["data"] for part in article["paragraphs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{file}: expected SQuAD\'s format, {{"data": [{{"paragraphs": [{{"context", '
            f'"qas"}}]}}]}}; {error!r} is missing or of another type.'
        ) from error
    for number, paragraph in enumerate(paragraphs, start=1):
        where = f"{file}, paragraph {number}"
        context = _text(paragraph, "context", where)
        for question in paragraph.get("qas") or ():
            if not isinstance(question, dict):
                raise ValueError(
                    f"{where}: 'qas' must list objects with 'id', 'question' and 'answers', got "
                    f"{str(question)[:80]}."
                )
            name = f"{where}, question {question.get('id')!r}"
            examples.append(
                {
                    "id": question.get("id"),
                    "context": context,
                    "question": _text(question, "question", name),
                    "answers": _answers(question, context, name, skipped),
                }
            )
    return not_empty(examples, file), skipped


def _answers(question: dict, context: str, where: str, skipped: Counter) -> list[dict]:
    found = []
    if not question.get("answers") or "id" not in question:
        raise ValueError(
            f"{where}: 'id' and at least one entry in 'answers' are needed; "
            "remove the question, or give it both."
        )
    for answer in question["answers"]:
        text, start = _text(answer, "text", where), answer.get("answer_start")
        if not isinstance(start, int):
            raise ValueError(
                f"{where}: 'answer_start' must be an integer, got {start!r}; "
                "give the offset of the answer in characters."
            )
        if start < 0 or not context.startswith(text, start):
            skipped["answer is not at its offset"] += 1
            start = None
        found.append({"text": text, "start": start})
    return found
