"""Tasks and their splits: the table is complete, and what is read is checked before training."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from finetuning.splits import Split, check_metric, describe, load, subset
from finetuning.tasks import TASKS, own_task, task_like

WORDS = ("很好", "不错", "新鲜", "干净", "便宜", "安静", "漂亮", "热情", "方便", "实在")


def write(file, labels: str, start: int = 0) -> None:
    """A review for each label, the texts numbered from `start`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"text": f"第{start + number}家店{WORDS[(start + number) % 10]}", "label": label}
        for number, label in enumerate(labels)
    ]
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    file.write_text("\n".join(lines), encoding="utf-8")


def reviews(folder, **settings):
    files = {split: str(folder / f"{split}.json") for split in ("train", "dev", "test")}
    return own_task("reviews", {"text": "text"}, files, **settings)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.json", "aabb")
    write(tmp_path / "dev.json", "abb", start=10)
    write(tmp_path / "test.json", "ab", start=20)
    return tmp_path


def test_the_table_holds_what_is_published_about_the_tasks():
    assert len(TASKS["tnews"].labels) == 15
    assert {"105", "111"}.isdisjoint(TASKS["tnews"].labels)
    assert len(TASKS["iflytek"].labels) == 119
    assert len(TASKS["cluener"].labels) == 10
    for task in TASKS.values():
        assert {"train"} <= set(task.splits) <= {"train", "dev", "test", "hidden"}
        assert "dev" in task.splits or task.held_out
        assert task.source


def test_splits_are_read_and_described(folder):
    task, splits = load(reviews(folder), folder)
    assert task.labels == ("a", "b")
    assert {name: len(split.examples) for name, split in splits.items()} == {
        "train": 4,
        "dev": 3,
        "test": 2,
    }
    assert describe(task, splits) == (
        "reviews: train 4; dev 3; test 2; 2 classes, majority of dev 66.7%"
    )


def test_texts_that_are_scored_are_left_out_of_train_and_counted(folder):
    write(folder / "train.json", "aabbab", start=18)  # 20 and 21 are in test
    task, splits = load(reviews(folder), folder)
    texts = [example["text"][:4] for example in splits["train"].examples]
    assert "第20家" not in texts
    assert "4 (2 left out: also in dev or test)" in describe(task, splits)


def test_a_class_of_one_text_is_not_held_out(folder):
    """It could not be learned, and would be unknown in dev."""
    write(folder / "train.json", "a" * 20 + "b" * 20 + "c")
    for share in (0.3, 0.6, 0.9):
        task = own_task("reviews", {"text": "text"}, {"train": str(folder / "train.json")})
        _, splits = load(replace(task, held_out=share), folder)
        assert "c" in [example["label"] for example in splits["train"].examples]
        assert "c" not in [example["label"] for example in splits["dev"].examples]


def test_without_dev_a_share_of_train_is_held_out(folder):
    write(folder / "train.json", "ab" * 10)
    task = own_task("reviews", {"text": "text"}, {"train": str(folder / "train.json")})
    splits = load(task, folder)[1]
    held = [example["text"] for example in splits["dev"].examples]
    assert len(held) == 2
    assert not set(held) & {example["text"] for example in splits["train"].examples}
    assert held == [example["text"] for example in load(task, folder)[1]["dev"].examples]


def test_questions_about_a_held_out_text_are_held_out_with_it(tmp_path):
    passages = [
        [
            [f"第{number}段。"],
            [{"question": q, "choice": ["对", "错"], "answer": "对"} for q in "甲乙"],
        ]
        for number in range(20)
    ]
    (tmp_path / "c3.json").write_text(json.dumps(passages), encoding="utf-8")
    lines = (
        {
            "content": [f"第{n}回#idiom{n}{blank}#。" for blank in "01"],
            "candidates": ["一心一意", "三心二意"],
        }
        for n in range(20)
    )
    (tmp_path / "chid.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    answers = {f"#idiom{n}{blank}#": int(blank) for n in range(20) for blank in "01"}
    (tmp_path / "chid_answer.json").write_text(json.dumps(answers), encoding="utf-8")
    for like in ("c3", "chid"):
        task = task_like("mine", like, {"train": str(tmp_path / f"{like}.json")})
        splits = load(task, tmp_path)[1]
        texts = {
            name: Counter(example["text"][:3] for example in splits[name].examples)
            for name in ("train", "dev")
        }
        assert len(splits["dev"].examples) == 4
        assert not texts["train"].keys() & texts["dev"].keys()


def test_a_split_may_have_several_files(tmp_path):
    """Blanks of different files are not answered together."""
    for number in range(3):
        line = {"text": f"第{number}家银行开业了", "label": {"company": {"银行": [[3, 4]]}}}
        (tmp_path / f"cluener{number}.json").write_text(json.dumps(line), encoding="utf-8")
        line = {"content": f"第{number}次#idiom#", "candidates": ["一心一意", "三心二意"]}
        line["answer"] = 0
        (tmp_path / f"fewclue_chid{number}.json").write_text(json.dumps(line), encoding="utf-8")
    for like in ("cluener", "fewclue_chid"):
        first, second, third = (str(tmp_path / f"{like}{number}.json") for number in range(3))
        task = task_like("mine", like, {"train": [first, third], "dev": second})
        examples = load(task, tmp_path)[1]["train"].examples
        assert [example["text"][:2] for example in examples] == ["第0", "第2"]
        assert [example.get("group", number) for number, example in enumerate(examples)] == [0, 1]


def test_a_copy_with_other_files_is_read_where_the_published_ones_are_missing(tmp_path):
    pairs = tmp_path / "afqmc"
    pairs.mkdir()
    for split, label in (("train", 0), ("train", 1), ("dev", 1)):
        with open(pairs / f"{split}.txt", "a", encoding="utf-8") as copy:
            copy.write(f"怎么还款{split}{label}\t如何还款\t{label}\n")
    read = load(TASKS["afqmc"], tmp_path)[1]
    assert read["train"].files == ("afqmc/train.txt",)
    texts = [example["text"] for example in read["train"].examples]
    assert texts == ["怎么还款train0", "怎么还款train1"]
    for split, labels in (("train", "01"), ("dev", "1")):
        rows = [
            json.dumps({"sentence1": f"{split}{n}", "sentence2": "乙", "label": label})
            for n, label in enumerate(labels)
        ]
        (pairs / f"{split}.json").write_text("\n".join(rows), encoding="utf-8")
    read = load(TASKS["afqmc"], tmp_path)[1]
    assert read["train"].files == ("afqmc/train.json",)
    assert [example["text_pair"] for example in read["dev"].examples] == ["乙"]
    with pytest.raises(FileNotFoundError, match=r"afqmc/train\.json, the train split, is missing"):
        load(TASKS["afqmc"], tmp_path / "nowhere")


def test_a_subset_is_the_same_each_time_and_keeps_the_order(folder):
    write(folder / "train.json", "ab" * 10)
    train = load(reviews(folder), folder)[1]["train"]
    some = subset(train, 5)
    assert subset(train, 5) == some
    assert [example["id"] for example in some.examples] == sorted(
        example["id"] for example in some.examples
    )
    assert len(some.examples) == 5
    assert subset(train, None) is train


def test_blanks_of_a_passage_are_drawn_together():
    passages = [number // 3 for number in range(30)]
    blanks = [{"id": number, "group": group} for number, group in enumerate(passages)]
    some = subset(Split(blanks, (), Counter()), 7, together=True)
    assert sorted(Counter(blank["group"] for blank in some.examples).values()) == [1, 3, 3]


def test_classes_other_than_0_and_1_have_no_f1(folder):
    task, splits = load(reviews(folder, metric="f1"), folder)
    with pytest.raises(ValueError, match=r"f1 needs the classes 0 and 1, but there are a, b"):
        check_metric(task, splits)
    check_metric(reviews(folder), splits)
    for name, labels in (("train", "0101"), ("dev", "000"), ("test", "01")):
        write(folder / f"{name}.json", labels, start=30 + ord(name[1]))
    with pytest.raises(ValueError, match=r"f1 needs examples of the classes .*, but dev has 0;"):
        check_metric(*load(reviews(folder, metric="f1"), folder))


def test_labels_are_the_same_text_in_files_and_run_files(folder):
    for name in ("train", "dev", "test"):
        lines = (
            f'{{"text": "{name}{label}", "label": {label}}}' for label in ("true", "false", "1.0")
        )
        (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
    files = {split: str(folder / f"{split}.json") for split in ("train", "dev", "test")}
    task = own_task("reviews", {"text": "text", "ignored": [1]}, files)
    assert load(task, folder)[0].labels == ("false", "true")


def test_entities_that_overlap_are_refused_where_they_are_scored(tmp_path):
    line = {"text": "长沙银行开业了", "label": {"company": {"长沙银行": [[0, 3]]}}}
    nested = {"text": "杭州银行也开业", "label": line["label"] | {"address": {"杭州": [[0, 1]]}}}
    nested["label"]["company"] = {"杭州银行": [[0, 3]]}
    folder = tmp_path / "cluener"
    folder.mkdir()
    texts = [json.dumps(each, ensure_ascii=False) for each in (line, nested)]
    (folder / "train.json").write_text(texts[1], encoding="utf-8")
    (folder / "dev.json").write_text(texts[0], encoding="utf-8")
    assert load(TASKS["cluener"], tmp_path)
    (folder / "dev.json").write_text("\n".join(texts), encoding="utf-8")
    (folder / "train.json").write_text(texts[0].replace("了", "吗"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev\.json, example 1: an entity of 'address' and one"):
        load(TASKS["cluener"], tmp_path)
    (folder / "dev.json").write_text('{"text": "没有标签"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev\.json, example 0: there is no right answer"):
        load(TASKS["cluener"], tmp_path)


def test_a_missing_split_is_named(folder):
    (folder / "dev.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"reviews: .*dev\.json, the dev split, is missing"):
        load(reviews(folder), folder)
    files = {name: str(folder / f"{name}.json") for name in ("train", "hidden")}
    with pytest.raises(FileNotFoundError, match=r"hidden\.json, the hidden split, is missing"):
        load(own_task("reviews", {"text": "text"}, files), folder)


def test_an_unknown_label_is_named(folder):
    write(folder / "dev.json", "abc", start=10)
    with pytest.raises(ValueError, match=r"dev\.json, example 2: unknown label 'c'.*are a, b"):
        load(reviews(folder), folder)


def test_one_class_is_refused(folder):
    write(folder / "train.json", "aaaa")
    with pytest.raises(ValueError, match="all examples of train have the label 'a'"):
        load(reviews(folder, labels=("a", "b")), folder)


def test_a_split_without_the_column_of_labels_is_refused(folder):
    (folder / "test.json").write_text('{"text": "门口有公交车"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"test\.json, example 0: there is no right .* test needs"):
        load(reviews(folder), folder)
