"""Classification data: formats become the same examples, and bad records are named."""

import json

import datasets
import pytest

from finetuning.classification_data import Columns, read_columns, read_csl, read_hub, read_wsc

ONE = {"id": 0, "text": "今天的菜很新鲜。", "text_pair": None, "label": "1"}
TWO = {"id": 1, "text": "等了一个小时，饭都凉了。", "text_pair": None, "label": "0"}
NAMED = Columns("review", "stars")


def write(folder, name: str, text: str):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def lines(*records: dict) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


RECORDS = [{"review": example["text"], "stars": int(example["label"])} for example in (ONE, TWO)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines(*RECORDS)),
        ("a.json", json.dumps(RECORDS)),
        ("a.csv", f'stars,review\n1,{ONE["text"]}\n0,"{TWO["text"]}"\n'),
        ("a.tsv", f"stars\treview\r\n1\t{ONE['text']}\r\n0\t{TWO['text']}\r\n"),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path, name, text):
    examples, skipped = read_columns(write(tmp_path, name, text), NAMED)
    assert examples == [ONE, TWO]
    assert not skipped


def test_numbers_and_truth_values_are_classes_as_they_are_written(tmp_path):
    """pandas makes 1.0 of a 1 where another cell is empty."""
    labels = [1, 1.0, 0.5, True, "1"]
    file = write(tmp_path, "a.json", lines(*({"review": "甲", "stars": each} for each in labels)))
    assert [e["label"] for e in read_columns(file, NAMED)[0]] == ["1", "1", "0.5", "true", "1"]


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    file = write(tmp_path, "a.csv", f"stars,review\n1,{'甲' * 200_000}\n")
    assert len(read_columns(file, NAMED)[0][0]["text"]) == 200_000


def test_a_table_without_a_header_is_read_by_indices(tmp_path):
    file = write(tmp_path, "dev.txt", '怎么还款\t"在哪还款\t1\n借款\t还款\t0\n')
    examples, _ = read_columns(file, Columns(0, 2, 1))
    assert [example["text_pair"] for example in examples] == ['"在哪还款', "还款"]
    assert [example["label"] for example in examples] == ["1", "0"]


def test_a_file_without_labels_is_a_hidden_test(tmp_path):
    file = write(tmp_path, "test.txt", "怎么还款\t在哪还款\n")
    assert read_columns(file, Columns(0, 2, 1))[0][0]["label"] is None


def test_ignored_labels_are_counted(tmp_path):
    file = write(tmp_path, "a.json", lines({"a": "甲", "label": "-"}, {"a": "乙", "label": "x"}))
    examples, skipped = read_columns(file, Columns("a", ignored=("-",)))
    assert [example["id"] for example in examples] == [1]
    assert skipped == {"left out: label '-'": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", lines({"title": "甲", "stars": 1}), "line 1.*no column 'review'.*'title'"),
        ("a.json", lines({"review": " ", "stars": 1}), "line 1.*'review'.*not empty"),
        ("a.json", lines(RECORDS[0], {"review": "乙"}), "line 2.*has no label"),
        ("a.json", lines({"review": "乙", "stars": ""}), "line 1.*'stars'.*is empty"),
        ("a.json", lines(RECORDS[0]) + "{", "line 2.*not JSON"),
        ("a.json", '"甲"\n', "line 1.*not a JSON object"),
        ("a.json", '["甲"]', "record 1.*expected an object"),
        ("a.csv", "stars,review\n1,甲,乙\n", "line 2: more cells than the 2 of the header"),
        ("a.csv", "stars,review\n", "no examples"),
        ("a.csv", 'stars,review\n1,"他说\n0,好"的\n', "line 3.*put in quotes itself"),
        ("a.json", lines({"review": "甲", "stars": ["a"]}), "line 1.*one class a text is expected"),
        ("a.json", '{"review": "甲", "stars": NaN}', "line 1.*'stars'.*is empty"),
        ("a.json", r'{"review": "甲\ud83d", "stars": 1}', "line 1.*half of a character"),
        ("a.xml", "", "cannot read '.xml'"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_columns(write(tmp_path, name, text), NAMED)
    assert name in str(error.value)


def wsc(**changes) -> dict:
    target = {"span1_text": "母亲", "span1_index": 0, "span2_text": "她", "span2_index": 8}
    return {"target": target | changes, "label": "true", "text": "母亲催女儿睡觉，她明天要早起。"}


def test_wsc_marks_the_noun_and_the_pronoun(tmp_path):
    examples, _ = read_wsc(write(tmp_path, "train.json", lines(wsc())))
    assert examples[0]["text"] == "_母亲_催女儿睡觉，[她]明天要早起。"
    assert examples[0]["label"] == "true"


def test_wsc_refuses_a_span_that_is_not_at_its_index(tmp_path):
    file = write(tmp_path, "train.json", lines(wsc(span2_index=7)))
    with pytest.raises(ValueError, match="line 1: 'span2_text' '她' does not stand at"):
        read_wsc(file)


def test_csl_pairs_keywords_with_the_abstract(tmp_path):
    record = {"id": 9, "abst": "本文研究桥梁。", "keyword": ["桥梁", "受力"], "label": "1"}
    examples, _ = read_csl(write(tmp_path, "train.json", lines(record)))
    pair = {"text": "桥梁，受力", "text_pair": "本文研究桥梁。"}
    assert examples == [{"id": 9, **pair, "label": "1"}]
    with pytest.raises(ValueError, match="line 1: 'keyword'"):
        read_csl(write(tmp_path, "bad.json", lines(record | {"keyword": []})))


def test_a_hub_data_set_gives_the_names_of_its_classes(monkeypatch):
    features = datasets.Features(
        {"s": datasets.Value("string"), "y": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"s": ["很好", "不行"], "y": [1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    examples, _ = read_hub("owner/reviews", "validation", Columns("s", "y"))
    assert [(example["text"], example["label"]) for example in examples] == [
        ("很好", "good"),
        ("不行", "bad"),
    ]
    with pytest.raises(ValueError, match=r"owner/reviews, split 'validation', row 1.*'title'"):
        read_hub("owner/reviews", "validation", Columns("title", "y"))
