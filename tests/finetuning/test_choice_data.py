"""Readers of C3 and ChID, in the formats of CLUE and FewCLUE."""

import json

import pytest

from finetuning.choice_data import BLANK, OTHER_BLANK, read_c3, read_chid

DIALOGUE = ["女：还有多久到站？", "男：十分钟左右。"]


def c3(*questions, lines=DIALOGUE, name="9-1") -> list:
    return [lines, list(questions), name]


def ask(answer="车上", choice=("车上", "家里", "店里")) -> dict:
    return {"question": "他们在哪儿？", "choice": list(choice), "answer": answer}


@pytest.fixture
def write(tmp_path):
    """Returns `write(name, records, lines)`: a JSON file of the records, one a line if asked."""

    def build(name, records, lines=False):
        file = tmp_path / name
        text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
        file.write_text(text, encoding="utf-8")
        return file

    return build


def test_c3_reads_both_files(write):
    dialogues = write("d.json", [c3(ask(), ask("店里"))])
    other = write("m.json", [c3(ask("家里", ("家里", "店里")), lines=["天黑了。"], name="m-2")])
    examples, skipped = read_c3(dialogues, other)
    assert examples[1] == {
        "id": "9-1-1",
        "group": "9-1",
        "text": "女：还有多久到站？\n男：十分钟左右。",
        "text_pair": "他们在哪儿？",
        "choices": ["车上", "家里", "店里"],
        "label": 2,
    }
    assert [example["label"] for example in examples] == [0, 2, 0]
    assert not skipped


def test_questions_of_the_hidden_c3_have_ids_of_their_own(write):
    asked = {"id": 0, "question": "他们在哪儿？", "choice": ["车上", "家里"]}
    record = [DIALOGUE, [asked, asked | {"id": 1}]]
    examples, _ = read_c3(write("test1.1.json", [record, [*record, "9-1"]]))
    assert [(e["id"], e["group"], e["label"]) for e in examples] == [
        *((0, 1, None), (1, 1, None)),
        *((0, "9-1", None), (1, "9-1", None)),
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "好"}], r"record 1: expected \[\[lines\]"),
        ([["家里没有米了。", [ask()], "1"]], r"record 1: expected \[\[lines\]"),
        ([[["家里没有米了。"], ask(), "1"]], r"record 1: expected \[\[lines\]"),
        ([c3("路上")], "record 1: a question must be an object"),
        ([c3(ask()), c3(ask("路上"))], "record 2: 'answer' '路上' is none of the choices"),
        ([c3(ask(choice=("车上",)))], "record 1: 'choice' must list at least two"),
        ([c3(ask(choice=("车上", "")))], "record 1: 'choice' must be a text"),
        ([c3(ask(), lines=[""])], "record 1: 'passage' must be a text"),
        ([c3({"choice": ["一", "二"]})], "record 1: 'question' must be a text"),
        ([], "no examples"),
    ],
)
def test_bad_c3_is_named(write, records, message):
    with pytest.raises(ValueError, match=message):
        read_c3(write("d.json", records))


IDIOMS = ["一举两得", "井井有条", "半途而废"]


def test_chid_of_fewclue_has_one_blank_a_text(write):
    line = {"id": 15, "candidates": IDIOMS, "content": "她把书架收拾得#idiom#。", "answer": 1}
    examples, skipped = read_chid(write("dev.json", [line, line | {"id": 16}], lines=True))
    assert examples[0] == {
        "id": 15,
        "group": 0,
        "text": f"她把书架收拾得{BLANK}。",
        "text_pair": None,
        "choices": IDIOMS,
        "label": 1,
    }
    assert examples[1]["group"] == 1
    assert not skipped


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_chid_of_clue_has_its_answers_in_a_file_of_their_own(write, kind):
    line = {
        "candidates": IDIOMS,
        "content": ["做事#idiom000001#，家里#idiom000002#。", "这样#idiom000003#。"],
    }
    answers = {"#idiom000001#": 2, "#idiom000002#": 1, "#idiom000003#": 0}
    table = write(f"train_answer.{kind}", answers)
    if kind == "csv":
        table.write_text("".join(f"{mark},{n}\n" for mark, n in answers.items()), encoding="utf-8")
    examples, _ = read_chid(write("train.json", [line], lines=True))
    assert [example["label"] for example in examples] == [2, 1, 0]
    assert [example["id"] for example in examples] == list(answers)
    assert {example["group"] for example in examples} == {0}
    assert examples[1]["text"] == f"做事{OTHER_BLANK}，家里{BLANK}。"


def test_chid_without_answers_is_a_test_set(write):
    line = {"candidates": IDIOMS, "content": ["这样#idiom000003#。"]}
    assert read_chid(write("test.json", [line], lines=True))[0][0]["label"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": "没有空"}, "line 1: 'content' has 0 blanks"),
        ({"content": "#idiom#和#idiom#"}, "line 1: 'content' has 2 blanks"),
        ({"content": ""}, "line 1: 'content'"),
        ({"content": None}, "line 1: 'content'"),
        ({"content": 5}, "line 1: 'content' must be a text"),
        ({"candidates": ["一举两得"]}, "line 1: 'candidates' must list at least two"),
        ({"answer": 3}, "line 1: the answer 3 is no index of the 3 candidates"),
        ({"answer": "1"}, "line 1: the answer '1' is no index"),
    ],
)
def test_bad_chid_is_named(write, change, message):
    line = {"candidates": IDIOMS, "content": "收拾得#idiom#。", "answer": 1} | change
    with pytest.raises(ValueError, match=message):
        read_chid(write("dev.json", [line], lines=True))


def test_a_line_of_chid_that_is_no_object_is_named(write):
    with pytest.raises(ValueError, match=r"dev\.json, line 1: not a JSON object: \[\]"):
        read_chid(write("dev.json", [[]], lines=True))
