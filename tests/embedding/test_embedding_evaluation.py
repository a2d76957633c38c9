"""Metrics by hand-made ranks, readers of the tasks' formats, and the table of an evaluation."""

import json

import numpy as np
import pytest
import torch

from commands import run_main
from embedding import evaluate, results
from embedding.encoder import Encoder, Opening
from embedding.evaluate import score
from embedding.lexical import Bigrams
from embedding.metrics import pair_metrics, ranks_of, retrieval_metrics
from embedding.tasks import Pairs, Ranking, Retrieval, read_task

CONTEXT, SECOND = "图书馆每天上午九点开门，晚上八点关门。", "磨坊建在河边，已经一百年了。"
DOCUMENTS = [CONTEXT, SECOND, "面条要煮五分钟，再加一点盐。"]
QUESTIONS = ["图书馆几点关门？", "磨坊建了多少年？"]


# --- metrics ------------------------------------------------------------------------------------


def test_ranks_count_from_1_and_ties_count_against():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.1]])
    assert ranks_of(scores, [0, 2, 1]).tolist() == [1, 3, 2]
    assert ranks_of(np.full((1, 3), np.nan), [0]).tolist() == [3]


def test_retrieval_metrics_of_ranks_1_3_and_11():
    metrics = retrieval_metrics(np.array([1, 3, 11]))
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 3) / 3)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 2) / 3)
    recalls = {f"recall@{k}": share / 3 for k, share in ((1, 1), (5, 2), (10, 2))}
    assert {name: metrics[name] for name in recalls} == pytest.approx(recalls)


def test_grades_have_no_auc_and_classes_have():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert pair_metrics(scores, [0, 1, 2, 5], binary=False)["spearman"] == pytest.approx(0.8)
    metrics = pair_metrics(scores, [0, 0, 1, 1], binary=True)
    assert metrics["auc"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="All 4 pairs have the same score"):
        pair_metrics(scores, [1, 1, 1, 1], binary=True)


def test_a_ranking_is_right_only_if_the_best_is_above_all_others():
    class Length:
        def similar(self, left, right):
            return np.array([len(text) for text in right])

    ranking = Ranking(["q"] * 3, [["好好", "好"], ["好", "好"], ["好", "好好", "好"]], [0, 0, 1])
    assert score(Length(), ranking) == {"accuracy": pytest.approx(2 / 3)}


# --- scorers ------------------------------------------------------------------------------------


def test_bigrams_find_what_shares_characters():
    bag = Bigrams()
    pairs = bag.similar(["磨坊在河边", "磨坊在河边"], ["磨坊在河边", "图书馆开门"])
    assert pairs == pytest.approx([1, 0])
    assert bag.search(QUESTIONS, DOCUMENTS).argmax(axis=1).tolist() == [0, 1]


def test_bm25_finds_words():
    pytest.importorskip("bm25s")
    from embedding.lexical import BM25

    scores = BM25().search(QUESTIONS, DOCUMENTS)
    assert scores.shape == (2, 3)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert score(BM25(), Pairs(["a"], ["b"], [1.0], True)) is None


class Model:
    """Stands for a SentenceTransformer; a vector says which call made it. Counts the texts."""

    def __init__(self):
        self.seen = []

    def _encode(self, axis: int, texts: list[str]):
        self.seen += texts
        return torch.eye(4)[[axis] * len(texts)]

    def encode(self, texts, **_):
        return self._encode(0, texts)

    def encode_query(self, texts, **_):
        return self._encode(1, texts)

    def encode_document(self, texts, **_):
        return self._encode(2, texts)


def test_a_text_is_encoded_once_for_similarity_and_with_its_own_prompt_for_search():
    encoder = Encoder(Model())
    assert encoder.similar(["甲", "乙"], ["乙", "乙"]).tolist() == [1, 1]
    encoder.similar(["甲"], ["乙"])
    assert encoder.model.seen == ["甲", "乙"]
    assert encoder.search(QUESTIONS, DOCUMENTS).tolist() == [[0, 0, 0]] * 2


def test_a_model_is_named_by_its_folder_and_its_dimensions(tmp_path):
    (tmp_path / "config.json").touch()
    assert Opening.of(f"{tmp_path}@64") == Opening(str(tmp_path), 64)
    assert Opening.of("user@home/model") == Opening("user@home/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="absent: there is no such folder"):
        Opening.of(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"empty holds neither config\.json nor modules\.json"):
        Opening.of(str(tmp_path / "empty"))


# --- readers ------------------------------------------------------------------------------------


def dump(*rows: dict) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def squad(*paragraphs: tuple[str, list[str]]) -> str:
    articles = [
        {"paragraphs": [{"context": context, "qas": [{"question": text} for text in questions]}]}
        for context, questions in paragraphs
    ]
    return json.dumps({"data": articles})


def pair(left: str, right: str, label: str) -> dict:
    return {"sentence1": left, "sentence2": right, "label": label}


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks in their original formats, a few rows each."""
    files = {
        "stsb/sts-b-test.txt": "甲\t甲乙\t5\n甲\t丙\t0\n",
        "afqmc/dev.txt": "甲\t乙\t1\n甲\t丙\t0\n",
        "simclue/test_public.json": dump(
            pair("甲", "乙", "1"), pair("甲", "丙", "0"), pair("丁", "戊", "1")
        ),
        "ocnli/dev.json": dump(
            pair("甲", "乙", "entailment"), pair("甲", "丙", "-"), pair("甲", "丁", "neutral")
        ),
        "simclue/triclue_small/test.json": dump(
            {"sentence_0": "甲", "sentence_1": "乙", "sentence_2": "丙", "label": 2}
        ),
        "cmrc2018/cmrc2018_dev.json": squad((CONTEXT, QUESTIONS[:1]), (SECOND, QUESTIONS[1:])),
        "drcd/DRCD_test.json": squad((CONTEXT, QUESTIONS[:1])),
        "csl_benchmark/ts/dev.tsv": f"to title\t{CONTEXT}\t开门时间\n",
        "csl_benchmark/ts/test.tsv": f"to title\t{SECOND}\t磨坊\n",
    }
    for name, content in files.items():
        file = tmp_path / "tasks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return tmp_path / "tasks"


def test_every_task_is_read_from_its_original_files(tasks):
    assert read_task("stsb", tasks) == Pairs(["甲", "甲"], ["甲乙", "丙"], [5, 0], False)
    assert read_task("afqmc", tasks) == Pairs(["甲", "甲"], ["乙", "丙"], [1, 0], True)
    assert read_task("simclue", tasks).scores == [1, 0, 1]
    assert read_task("ocnli", tasks) == Pairs(["甲", "甲"], ["乙", "丁"], [1, 0], True)
    assert read_task("triclue", tasks) == Ranking(["甲"], [["乙", "丙"]], [1])
    assert read_task("simclue_ranks", tasks) == Ranking(["甲"], [["乙", "丙"]], [0])
    assert read_task("cmrc", tasks) == Retrieval(QUESTIONS, [CONTEXT, SECOND], [0, 1])
    assert read_task("drcd", tasks) == Retrieval(QUESTIONS[:1], [CONTEXT], [0])
    assert read_task("csl", tasks) == Retrieval(["开门时间", "磨坊"], [CONTEXT, SECOND], [0, 1])


def test_a_missing_file_and_a_wrong_line_are_named(tasks):
    (tasks / "afqmc/dev.txt").write_text("甲\t乙\t1\n甲乙 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"afqmc/dev\.txt, line 2: 1 fields, not 3"):
        read_task("afqmc", tasks)
    for content, message in (
        ("甲\t乙\t好\n", "line 1: score '好' is not a number"),
        ("", "no pairs"),
    ):
        (tasks / "afqmc/dev.txt").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_task("afqmc", tasks)
    for content in ('{"version": "1"}', '{"data": [{"paragraphs": [{"context": "甲"}]}]}', "[]"):
        (tasks / "cmrc2018/cmrc2018_dev.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"cmrc2018_dev\.json is not in SQuAD's format"):
            read_task("cmrc", tasks)
    (tasks / "stsb/sts-b-test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"sts-b-test\.txt is missing: unpack"):
        read_task("stsb", tasks)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def evaluated(tasks, tmp_path, capsys):
    """Returns `evaluated(*options)`: the lines that the command printed."""

    def run(*options: str) -> list[str]:
        output = tmp_path / "results.json"
        run_main(evaluate, "--tasks", tasks, "--output", output, *options)
        return capsys.readouterr().out.splitlines()

    return run


def test_the_table_has_a_line_per_model_and_known_figures_are_not_measured_again(evaluated):
    lines = evaluated("--models", "bigrams", "--only", "stsb", "cmrc")
    assert [line.split(":")[0] for line in lines[:2]] == ["bigrams stsb", "bigrams cmrc"]
    assert lines[2:] == [
        "| model | STS-B ρ | CMRC MRR@10 | CMRC nDCG@10 |",
        "|---|---|---|---|",
        lines[4],
    ]
    assert lines[4].startswith("| bigrams | ")
    again = evaluated("--models", "bigrams", "--only", "stsb", "cmrc")
    assert again == lines[2:]


def test_two_commands_that_write_the_same_file_keep_both_figures(evaluated, tmp_path, monkeypatch):
    score = evaluate.score

    def slowly(scorer, task):
        monkeypatch.setattr(evaluate, "score", score)
        evaluated("--models", "bigrams", "--only", "cmrc")  # begins later and ends before
        evaluated("--models", "bm25", "--only", "cmrc")
        written = json.loads(file.read_text(encoding="utf-8"))
        written["models"]["bigrams"]["speed"] = {"latency_ms": 4.9}
        file.write_text(json.dumps(written), encoding="utf-8")
        return score(scorer, task)

    file = tmp_path / "results.json"
    monkeypatch.setattr(evaluate, "score", slowly)
    evaluated("--models", "bigrams", "--only", "stsb")
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    assert models.keys() == {"bigrams", "bm25"}
    assert models["bigrams"]["tasks"].keys() == {"stsb", "cmrc"}
    assert models["bigrams"]["speed"] == {"latency_ms": 4.9}


def test_figures_stay_where_their_file_goes_away_meanwhile(evaluated, tmp_path, monkeypatch):
    score = evaluate.score

    def slowly(scorer, task):
        (tmp_path / "results.json").unlink(missing_ok=True)
        return score(scorer, task)

    monkeypatch.setattr(evaluate, "score", slowly)
    lines = evaluated("--models", "bigrams", "bm25", "--only", "cmrc")
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| bigrams", "| bm25"]


def test_dimensions_that_a_model_does_not_have_are_refused(tiny_encoder):
    assert Opening.of(f"{tiny_encoder}@16").open().get_embedding_dimension() == 16
    with pytest.raises(ValueError, match="@4096: its vectors have 32 dimensions"):
        Opening.of(f"{tiny_encoder}@4096").open()
    with pytest.raises(ValueError, match="@0: at least one dimension"):
        Opening.of(f"{tiny_encoder}@0")


def test_figures_of_another_dtype_stand_beside(evaluated, tiny_encoder, tmp_path):
    evaluated("--models", str(tiny_encoder), "--only", "stsb")
    lines = evaluated("--models", str(tiny_encoder), "--only", "stsb", "--dtype", "bf16")
    assert lines[-1].startswith(f"| {tiny_encoder} (bf16) | ")
    assert len(json.loads((tmp_path / "results.json").read_text())["models"]) == 2


def test_speed_is_measured_again_on_another_machine(evaluated, tiny_encoder, tmp_path, monkeypatch):
    rates = iter((100, 200))
    monkeypatch.setattr(
        evaluate, "speed_of", lambda *_: {"sentences_per_second": next(rates), "parameters": 7}
    )
    options = ("--models", str(tiny_encoder), "--only", "stsb", "--speed")
    assert evaluated(*options)[-1].endswith(" 100 | 7 |")
    assert evaluated(*options)[-1].endswith(" 100 | 7 |")
    file = tmp_path / "results.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace('"machine": "', '"machine": "another '),
        encoding="utf-8",
    )
    assert evaluated(*options)[-1].endswith(" 200 | 7 |")


def test_another_state_of_a_model_is_measured_anew(evaluated, monkeypatch):
    evaluated("--models", "bigrams", "--only", "stsb")
    monkeypatch.setattr(evaluate, "fingerprint", lambda opening: "other weights")
    assert evaluated("--models", "bigrams", "--only", "stsb")[0].startswith("bigrams stsb: ")


def test_the_table_shows_speed_and_what_a_model_says_nothing_of():
    models = {
        "bm25": {"tasks": {"stsb": None, "cmrc": {"mrr@10": 0.5, "ndcg@10": 0.6}}},
        "m": {"tasks": {"stsb": {"spearman": 0.7}}, "speed": {"latency_ms": 4.94}},
    }
    assert results.table({"models": models}, ["bm25", "m"]).splitlines() == [
        "| model | STS-B ρ | CMRC MRR@10 | CMRC nDCG@10 | ms alone |",
        "|---|---|---|---|---|",
        "| bm25 | — | 0.500 | 0.600 | — |",
        "| m | 0.700 | — | — | 4.9 |",
    ]


def test_a_file_that_holds_something_else_is_not_overwritten(evaluated, tmp_path):
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit, match="does not hold figures of an evaluation"):
        evaluated("--models", "bigrams", "--only", "stsb")
    assert (tmp_path / "results.json").read_text() == "[]"
