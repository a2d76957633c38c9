"""Fine-tuning on titles: the same titles for all, an honest choice of the rate, and the table."""

import json
import sys
from pathlib import Path

import pytest
import torch

from configuration_chinese_modernbert import ChineseModernBertConfig
from experiments.learning_per_hour import finetune_titles
from experiments.learning_per_hour.finetune_titles import (
    Data,
    Line,
    better,
    choose_titles,
    measure,
    regression,
    table,
)
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from runs import ROOT, SHAPE

PLACES = ("北京", "上海", "广州", "成都", "西安", "杭州", "南京", "武汉", "重庆", "昆明")
TOPICS = {
    "101": ("{}队赢了昨晚的球赛", "{}的球迷在等这场比赛"),
    "102": ("{}明天有雨，出门带伞", "{}今天多云，夜里起风"),
}
TITLES = [
    (title.format(place), label)
    for label, titles in TOPICS.items()
    for title in titles
    for place in PLACES
]
SIZES = {"train": 20, "development": 6, "test": 8}


def write(folder: Path, **files: list[tuple[str, str]]) -> Path:
    for name, titles in files.items():
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in titles]
        (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path, train=TITLES, test=TITLES[::4])


@pytest.fixture
def data(folder) -> Data:
    return choose_titles(folder, SIZES)


@pytest.fixture(scope="module")
def model(made_once) -> str:
    def make(folder: Path) -> None:
        torch.manual_seed(0)
        shape = SHAPE | {"num_hidden_layers": 1}
        ChineseModernBertForMaskedLM(ChineseModernBertConfig(**shape)).save_pretrained(folder)
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenization_chinese_modernbert.py",
        ):
            (folder / name).write_bytes((ROOT / name).read_bytes())

    return str(made_once("titles-model", make))


def test_no_title_is_in_two_parts_and_every_call_draws_the_same(folder, data):
    assert choose_titles(folder, SIZES) == data
    parts = [data.train, data.development, data.test]
    assert [len(part.texts) for part in parts] == list(SIZES.values())
    assert len({text for part in parts for text in part.texts}) == sum(SIZES.values())
    labels = dict(TITLES)
    for part in parts:
        wanted = [sorted(TOPICS).index(labels[text]) for text in part.texts]
        assert part.labels == wanted
    assert data.classes == 2


def test_what_cannot_be_used_is_named(folder):
    with pytest.raises(ValueError, match=r"train\.json: 32 different titles, but 106 are needed"):
        choose_titles(folder, SIZES | {"train": 100})
    write(folder, test=[("一个没见过的题目", "999"), *TITLES[:7]])
    with pytest.raises(ValueError, match=r"labels that train\.json lacks: \['999'\]"):
        choose_titles(folder, SIZES)
    (folder / "test.json").write_text('{"sentence": "今天"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"test\.json, line 1: .*sentence and label"):
        choose_titles(folder, SIZES)


def test_a_regression_on_characters_tells_ball_games_from_the_weather(data):
    line = regression(data)
    assert line.test == [1.0]
    assert line.setting in ("C = 1", "C = 4")


def test_a_model_learns_the_titles_and_its_seed_decides_how(data, model, monkeypatch):
    monkeypatch.setattr(finetune_titles, "RATES", (0.0, 5e-3))
    monkeypatch.setattr(finetune_titles, "SEEDS", (1, 2))
    monkeypatch.setattr(finetune_titles, "EPOCHS", 6)
    monkeypatch.setattr(finetune_titles, "BATCH", 5)
    line = measure(model, data, True, torch.device("cpu"))
    assert line.setting == "0.005"  # at 0 it learns nothing
    assert len(line.test) == 2 and min(line.test) >= 0.75
    monkeypatch.setattr(finetune_titles, "RATES", (5e-3,))
    monkeypatch.setattr(finetune_titles, "SEEDS", (1,))
    again = measure(model, data, True, torch.device("cpu"))
    assert (again.development, again.test) == (line.development[:1], line.test[:1])


def test_the_rate_is_chosen_without_the_titles_for_testing():
    first = Line("a", 1, "1e-4", [0.5], [0.1])
    assert better([first, Line("a", 1, "3e-4", [0.4], [0.9])]) is first


def test_the_table_has_the_best_first_and_the_spread_of_the_seeds():
    lines = [
        Line("worse", 12_800_000, "0.0001", [0.48], [0.47]),
        Line("better", 9_500_000, "0.0003", [0.50, 0.52], [0.50, 0.53]),
    ]
    rows = table(lines).splitlines()
    assert rows[2] == "| better | 9.5 M | 0.0003 | 2 | 51.0 ± 1.0 % | 51.5 ± 1.5 % |"
    assert rows[3] == "| worse | 12.8 M | 0.0001 | 1 | 48.0 % | 47.0 % |"


def test_the_command_measures_random_weights_once_for_models_of_one_shape(
    folder, model, monkeypatch, capsys
):
    chosen = choose_titles(folder, SIZES)
    monkeypatch.setattr(finetune_titles, "choose_titles", lambda _: chosen)
    monkeypatch.setattr(finetune_titles, "EPOCHS", 1)
    monkeypatch.setattr(finetune_titles, "SEEDS", (1,))
    monkeypatch.setattr(finetune_titles, "RATES", (1e-3,))
    monkeypatch.setattr(finetune_titles, "set_verbosity_error", lambda: None)  # for other tests
    arguments = ["finetune_titles", "--data", str(folder), "--model", model, model]
    monkeypatch.setattr(sys, "argv", arguments)
    finetune_titles.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    names = sorted(row.split("|")[1].strip() for row in rows)
    yardsticks = ["logistic regression, characters and pairs", f"random weights, {model}"]
    assert names == sorted([model, model, *yardsticks])
