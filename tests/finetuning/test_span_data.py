"""Readers of entities and answers: the formats of CLUENER2020, CMRC2018 and DRCD."""

import json

import pytest

from finetuning.span_data import read_answers, read_entities


@pytest.fixture
def write(tmp_path):
    """Returns `write(lines or object)`: a file that holds them."""

    def build(content):
        file = tmp_path / "data.json"
        if isinstance(content, list):
            text = "\n".join(map(json.dumps, content))
        else:
            text = json.dumps(content)
        file.write_text(text, encoding="utf-8")
        return file

    return build


def squad(context, *questions) -> dict:
    paragraph = {"context": context, "qas": list(questions)}
    return {"data": [{"paragraphs": [paragraph]}]}


def question(name, text, *answers) -> dict:
    listed = [{"text": answer, "answer_start": start} for answer, start in answers]
    return {"id": name, "question": text, "answers": listed}


def test_entities_are_spans_whose_end_is_exclusive(write):
    label = {"address": {"南湖": [[6, 7], [0, 1]]}, "scene": {"公园": [[2, 3]]}}
    examples, skipped = read_entities(write([{"text": "南湖公园里，南湖很大", "label": label}]))
    assert examples == [
        {
            "id": 0,
            "text": "南湖公园里，南湖很大",
            "entities": [[0, 2, "address"], [2, 4, "scene"], [6, 8, "address"]],
        }
    ]
    assert not skipped


def test_an_entity_that_is_not_at_its_place_is_counted(write):
    label = {"address": {"南湖": [[1, 2]]}}
    examples, skipped = read_entities(write([{"text": "去南岸", "label": label}]))
    assert examples[0]["entities"] == []
    assert skipped == {"entity is not at its place": 1}


def test_a_test_set_has_no_entities(write):
    assert read_entities(write([{"id": 7, "text": "去南湖"}]))[0] == [
        {"id": 7, "text": "去南湖", "entities": None}
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "好"}, {"text": " "}], "line 2: 'text' must be a text that is not empty"),
        ([{"sentence": "好"}], "line 1: 'text'"),
        ([["好"]], "line 1: not a JSON object"),
        ([{"text": "好", "label": {"name": ["好"]}}], "line 1: 'label' must look like"),
        (
            [{"text": "好", "label": {"name": {"好": [["0", "0"]]}}}],
            "places of '好' must be numbers",
        ),
        ([], "holds no examples"),
    ],
)
def test_bad_entities_are_named(write, lines, message):
    with pytest.raises(ValueError, match=message):
        read_entities(write(lines))


def test_answers_keep_all_their_texts(write):
    content = squad("图书馆八点开门。", question("Q1", "几点开门？", ("八点", 3), ("八点开门", 3)))
    examples, skipped = read_answers(write(content))
    assert examples == [
        {
            "id": "Q1",
            "context": "图书馆八点开门。",
            "question": "几点开门？",
            "answers": [{"text": "八点", "start": 3}, {"text": "八点开门", "start": 3}],
        }
    ]
    assert not skipped


@pytest.mark.parametrize("start", [0, 4, 90, -1])
def test_an_answer_that_is_not_at_its_offset_has_no_start_and_is_counted(write, start):
    content = squad("图书馆八点开门。", question("Q1", "几点开门？", ("八点", start)))
    examples, skipped = read_answers(write(content))
    assert examples[0]["answers"] == [{"text": "八点", "start": None}]
    assert skipped == {"answer is not at its offset": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": "1"}, "SQuAD's format"),
        ({"data": [{"context": "好"}]}, "SQuAD's format"),
        (squad("", question("Q1", "几点？", ("八点", 0))), "paragraph 1: 'context'"),
        (squad("八点", question("Q1", "", ("八点", 0))), "question 'Q1': 'question'"),
        (squad("八点", question("Q1", "几点？")), "question 'Q1': .*at least one entry"),
        (squad("八点", question("Q1", "几点？", ("", 0))), "question 'Q1': 'text'"),
        (
            squad("八点", question("Q1", "几点？", ("八点", "0"))),
            "'answer_start' must be an integer",
        ),
        ({"data": []}, "holds no examples"),
        (squad("八点", "Q1"), "paragraph 1: 'qas' must list objects"),
        ({"data": [{"paragraphs": [{"context": "八点", "qas": None}]}]}, "holds no examples"),
    ],
)
def test_bad_answers_are_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_answers(write(content))
