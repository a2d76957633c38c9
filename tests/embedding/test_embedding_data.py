"""Rows of every kind of task, what is refused, and the texts of the test sets."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset

from embedding import data
from embedding.data import load_task
from embedding.held_out import HeldOut, normalized
from embedding.mine import Meanings, collect
from embedding.run_file import TaskSpec, load_run_file
from embedding.sentences import draw_pieces
from embedding.tasks import TASKS, Pairs, Ranking, Retrieval
from embedding.train import arguments_for

QUERY, TITLE, OTHER, THIRD = "怎么煮面", "面条的做法", "怎么洗碗", "锅从哪里买"


@pytest.fixture
def jsonl(tmp_path):
    """Returns `jsonl(*rows)`: a JSONL file of them."""

    def write(*rows: dict) -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
        )
        return file

    return write


def rows_of(kind: str, file: Path, *columns, **keys) -> list[dict]:
    held_out = keys.pop("held_out", None)
    spec = TaskSpec("task", kind, (file,), columns=columns, **keys)
    return load_task(spec, seed=0, held_out=held_out).rows.to_list()


# --- kinds --------------------------------------------------------------------------------------


def test_pairs_are_an_anchor_and_a_positive(jsonl):
    file = jsonl({"query": QUERY, "title": TITLE, "id": 1})
    assert rows_of("pairs", file, "query", "title") == [{"anchor": QUERY, "positive": TITLE}]


def test_negatives_may_be_columns_or_a_list(jsonl):
    wanted = {"anchor": QUERY, "positive": TITLE, "negative_1": OTHER, "negative_2": THIRD}
    columns = jsonl({"a": QUERY, "b": TITLE, "c": OTHER, "d": THIRD})
    assert rows_of("triplets", columns, "a", "b", "c", "d") == [wanted]
    listed = jsonl({"a": QUERY, "b": TITLE, "c": [OTHER, THIRD]})
    assert rows_of("triplets", listed, "a", "b", "c") == [wanted]
    one_by_one = rows_of("triplets", listed, "a", "b", "c", loss="triplet")
    assert [row["negative_1"] for row in one_by_one] == [OTHER, THIRD]
    assert all(row.keys() == {"anchor", "positive", "negative_1"} for row in one_by_one)


def test_each_of_several_positives_makes_a_triplet(jsonl):
    """As rerankers' data is published: a query, a list of positives, a list of negatives."""
    file = jsonl({"query": QUERY, "pos": [TITLE, OTHER], "neg": [THIRD]})
    rows = rows_of("triplets", file, "query", "pos", "neg")
    assert [(row["positive"], row["negative_1"]) for row in rows] == [
        (TITLE, THIRD),
        (OTHER, THIRD),
    ]
    with pytest.raises(ValueError, match="line 1: each field must be a text"):
        rows_of("ranked", file, "query", "pos", "neg")


def test_each_candidate_of_a_ranking_is_better_than_the_next(jsonl):
    rows = rows_of("ranked", jsonl({"q": QUERY, "best": [TITLE, OTHER, THIRD]}), "q", "best")
    assert [(row["positive"], row["negative_1"]) for row in rows] == [
        (TITLE, OTHER),
        (OTHER, THIRD),
    ]


def test_an_entailed_and_a_contradicted_hypothesis_of_a_premise_make_a_triplet(jsonl):
    file = jsonl(
        {"p": QUERY, "h": TITLE, "l": "entailment"},
        {"p": QUERY, "h": THIRD, "l": "neutral"},
        {"p": QUERY, "h": OTHER, "l": "contradiction"},
        {"p": OTHER, "h": THIRD, "l": "entailment"},  # nothing contradicts it
    )
    assert rows_of("nli", file, "p", "h", "l") == [
        {"anchor": QUERY, "positive": TITLE, "negative_1": OTHER}
    ]


def test_scores_are_brought_to_0_to_1_and_tsv_columns_are_numbers(tmp_path):
    file = tmp_path / "sts.tsv"
    file.write_text(f"{QUERY}\t{TITLE}\t4\n\n{QUERY}\t{OTHER}\t0\n", encoding="utf-8")
    rows = rows_of("scored", file, 0, 1, 2, score_range=(0, 5))
    assert [row["score"] for row in rows] == [0.8, 0.0]


def test_labels_have_scores_and_null_leaves_a_row_out(jsonl):
    file = jsonl(
        {"a": QUERY, "b": TITLE, "l": "entailment"},
        {"a": QUERY, "b": OTHER, "l": "-"},
        {"a": QUERY, "b": THIRD, "l": "contradiction"},
    )
    labels = {"entailment": 1, "contradiction": 0, "-": None}
    rows = rows_of("scored", file, "a", "b", "l", labels=labels)
    assert [row["score"] for row in rows] == [1.0, 0.0]


def test_a_limit_draws_rows_by_the_seed(jsonl):
    file = jsonl(*({"q": f"{n}号", "t": TITLE} for n in range(9)))
    spec = TaskSpec("task", "pairs", (file,), columns=("q", "t"), limit=4)
    drawn = [load_task(spec, seed).rows["anchor"][:] for seed in (0, 0, 1)]
    assert len(set(drawn[0])) == 4
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_data_set_of_the_hub_is_read_by_named_columns(jsonl, tmp_path, monkeypatch):
    jsonl({"q": QUERY, "t": TITLE, "id": 1})  # a folder of files is a data set, too
    spec = TaskSpec("task", "pairs", hub=str(tmp_path), columns=("q", "t"))
    assert load_task(spec, 0).rows.to_list() == [{"anchor": QUERY, "positive": TITLE}]
    rows = Dataset.from_dict({"p": [QUERY, QUERY], "h": [TITLE, OTHER], "l": [0, 2]})
    names = ClassLabel(names=["entailment", "neutral", "contradiction"])
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: rows.cast_column("l", names))
    labeled = TaskSpec("task", "nli", hub="user/nli", columns=("p", "h", "l"))
    (row,) = load_task(labeled, 0).rows.to_list()
    assert (row["positive"], row["negative_1"]) == (TITLE, OTHER)
    monkeypatch.undo()
    wrong = TaskSpec("task", "pairs", hub=str(tmp_path), columns=("q", "title"))
    with pytest.raises(ValueError, match="no column 'title'; it has q, t, id"):
        load_task(wrong, 0)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "columns", "message"),
    [
        ("pairs", {"q": QUERY}, ("q", "t"), "line 1: no key t; has ['q']"),
        ("pairs", {"q": QUERY, "t": "  "}, ("q", "t"), "line 1: each field must be a text"),
        ("triplets", {"q": QUERY, "t": TITLE, "n": []}, ("q", "t", "n"), "line 1: no negative"),
        ("ranked", {"q": QUERY, "c": [TITLE]}, ("q", "c"), "line 1: at least two candidates"),
        ("scored", {"a": QUERY, "b": TITLE, "s": 6}, ("a", "b", "s"), "6 is not from 0 to 1"),
        ("scored", {"a": QUERY, "b": TITLE, "s": "ja"}, ("a", "b", "s"), "'ja' is not a number"),
        ("nli", {"p": QUERY, "h": TITLE, "l": 0}, ("p", "h", "l"), "labels are 0; 'entailment'"),
    ],
)
def test_a_wrong_row_is_named(jsonl, kind, row, columns, message):
    with pytest.raises(ValueError) as error:
        rows_of(kind, jsonl(row), *columns)
    assert "rows.jsonl" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows to train on"),
        ('{"q": "好"'.encode(), "line 1: not JSON"),
        (b"[]", "line 1: not a JSON object"),
        (rb'{"q": "\ud83d", "t": "b"}', "line 1: each field has half of a character"),
        ('{"q": "好", "t": "好"}'.encode("gb18030"), "not UTF-8"),
    ],
)
def test_a_file_that_is_not_jsonl_is_named(tmp_path, content, message):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        rows_of("pairs", file, "q", "t")
    assert "rows.jsonl" in str(error.value)


def test_rows_with_unlike_numbers_of_negatives_are_refused(jsonl):
    file = jsonl({"a": QUERY, "b": [TITLE, OTHER]}, {"a": QUERY, "b": [TITLE, OTHER, THIRD]})
    with pytest.raises(ValueError, match="rows with 3 and with 4 texts"):
        rows_of("triplets", file, "a", "b")


def test_questions_come_with_the_sentences_around_their_answer(tmp_path):
    sentences = [
        f"第{number}天他们走了很远的路，晚上在山脚下的村子里住下。" for number in range(40)
    ]
    context = "".join(sentences)
    answered = {"question": QUERY, "answers": [{"answer_start": context.index(sentences[20]) + 3}]}
    unanswered = {"question": TITLE, "answers": []}
    file = tmp_path / "squad.json"
    content = {"data": [{"paragraphs": [{"context": context, "qas": [answered, unanswered]}]}]}
    file.write_text(json.dumps(content), encoding="utf-8")
    rows = load_task(TaskSpec("task", "questions", (file,)), seed=0).rows.to_list()
    assert [row["anchor"] for row in rows] == [QUERY, TITLE]
    middle, beginning = (row["positive"] for row in rows)
    assert middle == "".join(sentences[16:25]) and len(middle) <= 256
    assert beginning == "".join(sentences[:10])
    (longer, _) = load_task(TaskSpec("task", "questions", (file,), length=500), seed=0).rows
    assert middle in longer["positive"] and 450 < len(longer["positive"]) <= 500


def test_a_task_may_be_in_traditional_characters(jsonl):
    file = jsonl({"q": "图书馆几点关门", "t": "闭馆时间", "s": 1})
    (row,) = rows_of("scored", file, "q", "t", "s", traditional=True)
    assert row == {"sentence1": "圖書館幾點關門", "sentence2": "閉館時間", "score": 1.0}


def test_texts_of_the_test_sets_are_dropped_before_conversion_exchanges_words(jsonl):
    question = "有什么软件可以免费打电话"  # 軟體 in Taiwan, and back again 软体
    file = jsonl({"q": question, "t": "网络电话"}, {"q": QUERY, "t": TITLE})
    spec = TaskSpec("task", "pairs", (file,), columns=("q", "t"), traditional=True)
    held_out = SimpleNamespace(holds_any=lambda texts: question in list(texts))
    loaded = load_task(spec, seed=0, held_out=held_out)
    assert (len(loaded.rows), loaded.dropped) == (1, 1)


def test_a_limit_beyond_the_rows_is_refused(jsonl):
    with pytest.raises(ValueError, match="limit 5, but only 1 rows"):
        rows_of("pairs", jsonl({"q": QUERY, "t": TITLE}), "q", "t", limit=5)


RUN = """
model: .
output: out
tasks:
  one: {kind: pairs, files: [rows.jsonl], columns: [q, t]}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: .\n", "", "key 'model' is missing"),
        ("output: out", "output: out\nturn: x", "unknown key 'turn'"),
        ("pairs, files: [rows.jsonl], columns: [q, t]", "questions, hub: x", "name files in SQuAD"),
        ("output: out", "output: out\nturns: x", "turns: 'x'; one of proportional, round_robin"),
        ("output: out", "output: out\ntraining: {lr: 1}", "training.lr is not a key of Sentence"),
        ("output: out", "output: out\ntraining: {seed: 1}", "training.seed is not set here"),
        ("kind: pairs", "kind: couples", "tasks.one.kind: 'couples'; one of pairs, triplets"),
        ("[q, t]", "[q]", "tasks.one.columns: 1 given, 2 needed for kind pairs"),
        ("[q, t]", "[q, t], hub: x", "tasks.one: give either files or hub"),
        ("[q, t]", "[q, t], loss: cosent", "tasks.one.loss: 'cosent'; kind pairs has ranking"),
        ("[q, t]", "[q, t], prompts: [query]", "'query' is not among the run's prompts (none)"),
        ("kind: pairs", "kind: teacher", "tasks.one.teacher: name a folder"),
        ("[q, t]", "[q, t], teacher: x", "tasks.one.teacher: only the kinds teacher and neighbors"),
        ("tasks:\n  one", "tasks: [\n  one", "not YAML"),
        ("output: out", "output: 5", "output: a text expected, not 5"),
        ("output: out", "output: out\ncompile: no", "compile: true or false expected, not 'no'"),
        ("output: out", "output: out\ntraining:", "training: keys and values expected, not None"),
        ("output: out", "output: out\ndimensions: 64", "dimensions: a list of whole numbers"),
        ("[rows.jsonl]", "rows.jsonl", "tasks.one: files: a list of texts expected"),
        ("[q, t]", "[q, 1]", "tasks.one: columns: a list of names, or of numbers from 0"),
        ("[q, t]", "[-2, -1]", "tasks.one: columns: a list of names, or of numbers from 0"),
        ("one:", "a.b:", "tasks.a.b: a task's name is a text without dots"),
        ("one:", "2024:", "tasks.2024: a task's name is a text without dots"),
        ("[q, t]", "[q, t], limit: 0", "tasks.one: limit: a whole number above 0 expected, not 0"),
        ("[q, t]", "[q, t], score_range: [5, 0]", "score_range: [lowest, highest] expected"),
        ("[q, t]", "[q, t], labels: {相似: 高}", "tasks.one: labels: labels and their scores"),
    ],
)
def test_a_wrong_run_file_is_refused(tmp_path, old, new, message):
    file = tmp_path / "run.yaml"
    file.write_text(RUN, encoding="utf-8")
    assert load_run_file(file).tasks[0].columns == ("q", "t")
    assert old in RUN
    file.write_text(RUN.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_run_file(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_keys_can_be_set_on_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN, encoding="utf-8")
    run = load_run_file(file, ["seed=3", "tasks.one.limit=5", "training.learning_rate=1e-4"])
    assert (run.seed, run.tasks[0].limit, run.training) == (3, 5, {"learning_rate": 1e-4})
    for override, message in (("seed", "not of the form"), ("seed.x=1", "seed is not a group")):
        with pytest.raises(ValueError, match=message):
            load_run_file(file, ["seed=3", override])


ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("file", sorted((ROOT / "configs/embedding").glob("*.yaml")), ids=str)
def test_the_run_files_of_the_repository_are_valid(file):
    run = load_run_file(file)
    assert run.exclude is not None
    rows = {task.name: Dataset.from_dict({"text": ["今天下雨。"]}) for task in run.tasks}
    assert arguments_for(run, rows).seed == run.seed  # on a machine without a GPU, too


# --- test sets ----------------------------------------------------------------------------------


@pytest.fixture
def held_out(monkeypatch, tmp_path) -> HeldOut:
    """The texts of three tests of our own."""
    paragraph = "河边有一座旧磨坊，现在是图书馆。好。它每天上午九点开门。"
    tests = {
        "pairs": Pairs(["今天下雨了。"], ["外面在下雨"], [1.0], True),
        "ranking": Ranking(["门锁坏了"], [["锁打不开了", "窗户坏了"]], [0]),
        "retrieval": Retrieval(["图书馆几点开门"], [paragraph], [0]),
    }
    for name in list(TASKS):
        monkeypatch.delitem(TASKS, name)
    for name, task in tests.items():
        monkeypatch.setitem(TASKS, name, lambda folder, task=task: task)
    return HeldOut(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("今天下雨了", "外面 在下雨！！", "窗户坏了", "图书馆几点开门？", "它每天上午九点开门"),
        "我们走到了河边。它每天上午九点开门！时间还早。",
    ],
)
def test_a_text_of_a_test_set_is_found_whatever_its_punctuation(held_out, text):
    assert held_out.holds(text)


@pytest.mark.parametrize("text", ["今天没有下雨", "好", "磨坊", "。"])
def test_other_texts_and_single_words_of_a_paragraph_are_not(held_out, text):
    assert not held_out.holds(text)


def test_a_text_of_a_test_set_is_found_in_either_script(held_out):
    assert held_out.holds("圖書館幾點開門")


def test_width_and_case_do_not_matter():
    assert normalized("ＡＢＣ　１２３，好！") == normalized("abc 123 好") == "abc123好"


def test_rows_with_a_text_of_a_test_set_are_dropped_and_counted(jsonl, held_out):
    file = jsonl({"q": QUERY, "t": TITLE}, {"q": "今天下雨了！", "t": TITLE})
    spec = TaskSpec("task", "pairs", (file,), columns=("q", "t"))
    loaded = load_task(spec, 0, held_out)
    assert loaded.rows.to_list() == [{"anchor": QUERY, "positive": TITLE}]
    assert loaded.dropped == 1


def test_drawn_sentences_are_distinct_and_none_of_a_test_set(held_out):
    pieces = [*(f"第{n}句话，随便写的。" for n in range(20)), "它每天上午九点开门。", "短"]
    drawn = draw_pieces(iter(pieces * 2), 8, 0, held_out)
    assert len(set(drawn)) == 8
    assert drawn == draw_pieces(reversed(pieces), 8, 0, held_out)
    everything = draw_pieces(iter(pieces), 100, 0, held_out)
    assert set(everything) == set(pieces[:20])


# --- hard negatives -----------------------------------------------------------------------------


def test_what_means_the_same_over_several_pairs_is_not_a_negative():
    meanings = Meanings([(QUERY, TITLE), ("面怎么煮", f"{TITLE}！"), (OTHER, "碗怎么洗")])
    assert meanings.same("面怎么煮", QUERY)
    assert not meanings.same(OTHER, QUERY)
    mined = [
        {"anchor": QUERY, "positive": TITLE, "negative": text}
        for text in ("面怎么煮", OTHER, THIRD, "碗怎么洗")
    ]
    assert collect(mined, meanings, negatives=2) == [
        {"anchor": QUERY, "positive": TITLE, "negatives": [OTHER, THIRD]}
    ]
    assert collect(mined, meanings, negatives=4) == []
