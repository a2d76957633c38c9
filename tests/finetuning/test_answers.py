"""Answers: questions and contexts become rows, and the marked answer comes back exactly."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetuning.answers import AnswerSettings, decode, features

CONTEXT = "图书馆周一至周五早上八点开门，晚上九点半关门；周末十点开门，六点关门。假日全天不开放。"


def ask(question: str, answer: str, start: int | None = -1) -> dict:
    if start == -1:
        start = CONTEXT.index(answer)
    answers = [{"text": answer, "start": start}]
    return {"id": question, "context": CONTEXT, "question": question, "answers": answers}


EXAMPLES = [ask("周末几点关门？", "六点"), ask("平时几点开门？", "早上八点"), ask("？", CONTEXT)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(".", trust_remote_code=True)


def certain(rows: list[dict], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a model that points at the labels, padded with larger ones."""
    length = max(length, *(len(row["input_ids"]) for row in rows))
    sides = np.full((2, len(rows), length), 99.0)
    for side, name in zip(sides, ("start_positions", "end_positions"), strict=True):
        for line, row in zip(side, rows, strict=True):
            line[: len(row["input_ids"])] = 0
            line[row[name]] = 20
    return sides[0], sides[1]


@pytest.mark.parametrize("borders", ["plain", "words", "characters"])
@pytest.mark.parametrize("max_length", [512, 32])
def test_answers_come_back_exactly(tokenizer, borders, max_length):
    settings = AnswerSettings(max_length, stride=5, borders=borders)
    rows, decoding = features(EXAMPLES[:2], tokenizer, settings, training=True)
    assert all(len(row["input_ids"]) <= max_length for row in rows)
    assert (len(rows) > 2) == (max_length == 32)
    assert not decoding.inexact
    found = decode(certain(rows, length=60), decoding)
    assert [(one["text"], one["start"]) for one in found] == [
        (example["answers"][0]["text"], example["answers"][0]["start"]) for example in EXAMPLES[:2]
    ]
    assert all(one["score"] > 0.9 for one in found)


def test_a_window_without_the_whole_answer_points_to_its_first_token(tokenizer):
    rows, decoding = features(EXAMPLES[:1], tokenizer, AnswerSettings(24, 8), training=True)
    places = [(row["start_positions"], row["end_positions"]) for row in rows]
    first, last = decoding.tokens[0].cover(CONTEXT.index("六点"), CONTEXT.index("六点") + 2)
    for place, (_, start, stop, offset, length) in zip(places, decoding.rows, strict=True):
        inside = start <= first and last < stop
        assert place == ((offset + first - start, offset + last - start) if inside else (0, 0))
        assert length == offset + stop - start + 1
    assert len(set(places)) > 1 and (0, 0) in places


def test_the_answer_is_the_most_probable_span_within_the_limit(tokenizer):
    settings = AnswerSettings(longest_answer=3)
    rows, decoding = features(EXAMPLES[:1], tokenizer, settings, training=False)
    assert "start_positions" not in rows[0]
    first, last = np.random.default_rng(0).normal(size=(2, 1, len(rows[0]["input_ids"])))
    [found] = decode((first, last), decoding)
    offset, tokens = decoding.rows[0][3], decoding.tokens[0]
    best = max(
        (first[0, offset + a] + last[0, offset + b], tokens.text_span(a, b))
        for b in range(len(tokens))
        for a in range(b + 1)
        if tokens.spans[b, 1] - tokens.spans[a, 0] <= 3
    )[1]
    assert (found["start"], found["start"] + len(found["text"])) == best
    assert CONTEXT[slice(*best)] == found["text"]


def test_examples_that_cannot_be_trained_on_are_counted(tokenizer):
    examples = [EXAMPLES[0], ask("几点？", "七点", start=None)]
    rows, decoding = features(examples, tokenizer, AnswerSettings(), training=True)
    assert len(rows) == 1 and decoding.inexact == {"no answer at its offset": 1}
    # They are still asked when scored.
    rows, decoding = features(examples, tokenizer, AnswerSettings(), training=False)
    assert len(rows) == len(decoding.contexts) == 2


def test_an_answer_that_ends_within_a_token_is_counted(tokenizer):
    example = {
        "id": 0,
        "context": "银行",
        "question": "？",
        "answers": [{"text": "银", "start": 0}],
    }
    settings = AnswerSettings(borders="plain")
    rows, decoding = features([example], tokenizer, settings, training=True)
    assert decoding.inexact == {"ends within a token": 1}
    assert decode(certain(rows), decoding)[0]["text"] == "银行"


def test_when_scored_only_examples_without_any_exact_answer_are_counted(tokenizer):
    answers = [{"text": "银", "start": 1}, {"text": "去银行", "start": 0}]
    example = {"id": 0, "context": "去银行", "question": "？", "answers": answers}
    settings = AnswerSettings(borders="plain")
    assert not features([example], tokenizer, settings, training=False)[1].inexact
    half = example | {"answers": answers[:1]}
    _, decoding = features([half], tokenizer, settings, training=False)
    assert decoding.inexact == {"ends within a token": 1}


def test_answers_that_are_too_long_to_be_predicted_are_counted(tokenizer):
    answers = [{"text": "去银行", "start": 0}, {"text": "银行", "start": 1}]
    example = {"id": 0, "context": "去银行", "question": "？", "answers": answers}
    settings = AnswerSettings(longest_answer=2)
    too_long = {"longer than 2 characters": 1}
    assert features([example], tokenizer, settings, training=True)[1].inexact == too_long
    assert not features([example], tokenizer, settings, training=False)[1].inexact
    example["answers"] = answers[:1]
    assert features([example], tokenizer, settings, training=False)[1].inexact == too_long


def test_a_context_of_which_no_token_is_left_is_refused(tokenizer):
    empty = {"id": 7, "context": "", "question": "几点？", "answers": []}
    with pytest.raises(ValueError, match="7: the tokenizer leaves nothing of 'context'"):
        features([empty], tokenizer, AnswerSettings(), training=False)


def test_a_question_that_fills_the_input_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"leave no room for the context in 8; raise max_length"):
        features([ask("周末" * 9, "六点")], tokenizer, AnswerSettings(8), training=False)
