"""The command: what it runs, what it does not run again, and how it reads its plan."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_up import made_up_splits

from finetuning import clue
from finetuning.plan import read_plan
from finetuning.predictions import read_predictions

FILES = ("train", "dev", "test")
NOTHING = {"predictions": {}}  # of a run that is not trained


@pytest.fixture
def data(tmp_path):
    for name, split in made_up_splits("classification", train=24, dev=8, test=8).items():
        lines = (
            json.dumps({"words": f"{example['text']}{name}{number}", "kind": example["label"]})
            for number, example in enumerate(split.examples)
        )
        (tmp_path / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run_file(data, tiny_folder):
    own = {
        "columns": {"text": "words", "label": "kind"},
        "files": {name: str(data / f"{name}.json") for name in FILES},
        "learning_rates": [1e-3, 3e-3],
        "epochs": 1,
    }
    content = {
        "models": [f"tiny=random:{tiny_folder}", "majority", "characters"],
        "tasks": [{"fruit": own}],
        "data": str(data),
        "output": str(data / "results"),
        "seeds": 2,
    }
    file = data / "run.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_runs_are_kept_printed_and_not_run_again(run_file, data, capsys, monkeypatch):
    clue.main([str(run_file)])
    printed = capsys.readouterr().out
    files = sorted((data / "results").glob("*/*/*.json"))
    assert Counter(file.parent.parent.name for file in files) == {
        "tiny": 3,  # two rates with the first seed, the better one with the second
        "majority": 1,
        "characters": 1,
    }
    assert "fruit: train 24; dev 8; test 8; 2 classes" in printed
    assert "| task | split | score | tiny | characters | majority |" in printed
    assert "(2)" in printed
    rate = max(
        (json.loads(file.read_text()) for file in files if file.name.startswith("seed-0")),
        key=lambda result: result["scores"]["dev"]["accuracy"],
    )["settings"]["learning_rate"]
    file = data / f"results/tiny/fruit/seed-1-rate-{rate:g}.json"
    assert "predictions" not in json.loads(file.read_text())
    assert {split: len(those) for split, those in read_predictions(file).items()} == {
        "dev": 8,
        "test": 8,
    }

    files[-1].unlink()
    trained = []
    monkeypatch.setattr(clue, "train", lambda run, *others: trained.append(run.seed) or {**NOTHING})
    monkeypatch.setattr(clue, "line", lambda result: "")
    before = {file: file.stat().st_mtime_ns for file in files[:-1]}
    clue.run(read_plan(run_file, {}))
    assert trained == [1]
    assert {file: file.stat().st_mtime_ns for file in files[:-1]} == before


def test_results_of_other_settings_are_not_taken_for_these(run_file):
    clue.run(read_plan(run_file, {"models": ["majority"]}))
    plan = read_plan(run_file, {"models": ["majority"], "train_examples": 20})
    with pytest.raises(ValueError, match=r"result\.json: was made with other.*train_examples"):
        clue.run(plan)


def test_a_result_of_other_texts_is_not_taken_for_one_of_these(run_file, data):
    clue.run(read_plan(run_file, {"models": ["majority"]}))
    train = (data / "train.json").read_text(encoding="utf-8")
    (data / "train.json").write_text(train.replace("train0", "another"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"result\.json: was made with other settings \(content\)"):
        clue.run(read_plan(run_file, {"models": ["majority"]}))


def test_each_split_that_is_scored_or_trained_on_can_be_a_fixed_subset(run_file):
    sizes = {"train_examples": 20, "dev_examples": 6, "test_examples": 5}
    [result] = clue.run(read_plan(run_file, {"models": ["majority"], **sizes}))
    assert result["settings"]["examples"] == {"train": 20, "dev": 6, "test": 5}


def test_a_model_that_changes_between_two_runs_is_refused(run_file, tiny_folder, data, monkeypatch):
    model = shutil.copytree(tiny_folder, data / "model")

    def train(*arguments) -> dict:
        (model / "config.json").write_text("{}", encoding="utf-8")
        return {**NOTHING}

    monkeypatch.setattr(clue, "train", train)
    monkeypatch.setattr(clue, "line", lambda result: "")
    with pytest.raises(ValueError, match="model has changed since this command began"):
        clue.run(read_plan(run_file, {"models": [f"random:{model}"]}))


def test_models_can_be_saved_after_their_results_were_made(run_file, data):
    for save_models in (None, True):
        clue.run(read_plan(run_file, {"save_models": save_models, "seeds": 1}))
    folders = sorted(path.name for path in data.glob("results/tiny/fruit/*") if path.is_dir())
    assert folders == ["seed-0-rate-0.001", "seed-0-rate-0.003"]


def test_a_saved_model_is_never_that_of_another_result(run_file, data):
    saved = data / "results/tiny/fruit/seed-0-rate-0.001"
    clue.run(read_plan(run_file, {"save_models": True, "seeds": 1}))
    for file in data.glob("results/tiny/fruit/*.json"):
        file.unlink()
    assert (saved / "task.json").exists()
    clue.run(read_plan(run_file, {"seeds": 1}))
    assert not saved.exists()


def test_a_hidden_test_that_comes_later_is_answered(run_file, data):
    content = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    clue.main([str(run_file), "--seeds", "1", "--save_models"])
    lines = (json.dumps({"words": f"苹果{number}"}) for number in range(3))
    (data / "hidden.json").write_text("\n".join(lines), encoding="utf-8")
    content["tasks"][0]["fruit"]["files"]["hidden"] = str(data / "hidden.json")
    run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    clue.main([str(run_file), "--seeds", "1", "--save_models"])
    for name in ("tiny/fruit/seed-0-rate-0.001", "characters/fruit/result"):
        assert len(read_predictions(data / f"results/{name}.json")["hidden"]) == 3
    # Where it is not there, its answers stay.
    del content["tasks"][0]["fruit"]["files"]["hidden"]
    run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    clue.main([str(run_file), "--seeds", "1", "--save_models"])
    assert "hidden" in read_predictions(data / "results/tiny/fruit/seed-0-rate-0.001.json")


def test_bad_data_is_refused_before_any_run(run_file, data):
    (data / "dev.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"fruit: .*the dev split, is missing"):
        clue.run(read_plan(run_file, {"models": ["majority"]}))
    assert not (data / "results").exists()


ENTITY = {"text": "甲方已付款。", "label": {"party": {"甲方": [[0, 1]]}}}
QUESTION = {"question": "谁付款？", "choice": list("甲乙丙丁戊"), "answer": "甲"}


@pytest.mark.parametrize(
    ("settings", "content", "message"),
    [
        ({"like": "cluener"}, ENTITY, "own: .*example 0: unknown label 'party'; the labels are"),
        ({"like": "c3"}, [[["甲方已付款。"], [QUESTION], "1"]], "own: .*has 5 choices, the task 4"),
        ({"like": "cluener", "max_length": 9_000}, ENTITY, "own: max_length 9000 is more than"),
    ],
)
def test_what_a_later_task_cannot_use_is_refused_before_any_run(
    run_file, data, settings, content, message
):
    text = json.dumps(content, ensure_ascii=False)
    (data / "own.json").write_text(text, encoding="utf-8")
    (data / "own-dev.json").write_text(text.replace("已", "未"), encoding="utf-8")
    files = {"train": str(data / "own.json"), "dev": str(data / "own-dev.json")}
    plan = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    plan["tasks"].append({"own": settings | {"files": files}})
    run_file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        clue.run(read_plan(run_file, {}))
    assert not (data / "results").exists()


def test_options_take_the_place_of_the_file(run_file):
    content = yaml.safe_load(run_file.read_text())
    content["tasks"] += [{"c3": {"epochs": 7}}, "ocnli"]
    run_file.write_text(yaml.safe_dump(content))
    plan = read_plan(run_file, {"models": ["majority"], "tasks": ["tnews", "c3"], "seeds": None})
    assert [model.source for model in plan.models] == ["majority"]
    assert [task.name for task in plan.tasks] == ["tnews", "c3"]
    assert plan.tasks[1].epochs == 7  # as the file has it
    assert plan.seeds == 2


def test_models_are_named_after_their_folder(tiny_folder):
    options = {"tasks": ["tnews"], "data": "d", "output": "o"}
    models = [str(tiny_folder), f"random:{tiny_folder}", "owner/model", "peer=owner/model"]
    plan = read_plan(None, options | {"models": models})
    names = [model.name for model in plan.models]
    assert names == ["tiny", "tiny (random weights)", "model", "peer"]
    assert plan.models[1].file_name == "tiny-random-weights"


def test_a_folder_may_have_an_equals_sign_in_its_name(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "lr=0.1")
    options = {"tasks": ["tnews"], "data": "d", "output": "o"}
    models = [str(folder), f"random:{folder}", f"mine={folder}"]
    plan = read_plan(None, options | {"models": models})
    assert [model.folder for model in plan.models] == [str(folder)] * 3
    assert plan.models[2].name == "mine"


def test_a_task_may_be_like_a_public_one_without_passing_for_it(tmp_path):
    files = {"train": "train.json", "hidden": ["a.json", "b.json"]}
    contracts = {"like": "cluener", "labels": ["party"], "files": files, "epochs": 2}
    content = {"models": ["majority"], "data": "d", "output": "o"}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content | {"tasks": [{"contracts": contracts}]}))
    (task,) = read_plan(file, {}).tasks
    assert (task.name, task.head, task.hub, task.labels) == ("contracts", "tokens", "", ("party",))
    assert task.splits["train"] == (str(Path("train.json").absolute()),)
    assert [Path(file).name for file in task.splits["hidden"]] == ["a.json", "b.json"]
    assert (task.held_out, task.epochs) == (0.1, 2)


def test_labels_stay_text_whatever_yaml_1_1_takes_them_for(tmp_path):
    file = tmp_path / "run.yaml"
    tasks = "tasks: [{cluener: {labels: [yes, no]}}]"
    file.write_text(f"models: [majority]\n{tasks}\ndata: d\noutput: o\n", encoding="utf-8")
    assert read_plan(file, {}).tasks[0].labels == ("yes", "no")
    file.write_text(file.read_text().replace("yes, no", "true, 1.0"), encoding="utf-8")
    assert read_plan(file, {}).tasks[0].labels == ("true", "1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["news"]}, "unknown task 'news'; there are afqmc, tnews"),
        ({"tasks": [{"tnews": {"rate": 1}}]}, "'tnews' has an unknown setting 'rate'"),
        ({"tasks": []}, "'tasks' is missing"),
        ({"seeds": 0}, "'seeds' must be an integer of at least 1, got 0"),
        ({"save_models": "no"}, "'save_models' must be true or false, got 'no'"),
        ({"compile": "inductor"}, "'compile' must be true or false, got 'inductor'"),
        ({"model": ["a"]}, "unknown key 'model'; the keys are models"),
        ({"models": ["a/b", "c/b"]}, "two models are called 'b'"),
        ({"tasks": ["tnews", {"tnews": {"epochs": 1}}]}, "the task 'tnews' is there twice"),
        ({"tasks": [{"tnews": {"head": "choices"}}]}, "'tnews' has an unknown setting 'head'"),
        ({"tasks": [{"tnews": {"held_out": 1.5}}]}, "held_out: a share from 0 to below 1 expected"),
        ({"tasks": [{"a": {"columns": "t", "files": {"train": "t"}}}]}, "columns: keys with their"),
        ({"tasks": [{"a/b": {"epochs": 1}}]}, "task 'a/b': a name of letters"),
        ({"tasks": [{2024: {"epochs": 1}}]}, "task 2024: a name of letters"),
        ({"tasks": [{"a": {"like": "b", "files": {"train": "t"}}}]}, "like: 'b' is unknown; there"),
        (
            {"tasks": [{"tnews": {"columns": {"text": "t"}, "files": {"train": "t"}}}]},
            "'tnews' is a public task; give yours another name",
        ),
        (
            {"tasks": [{"a": {"columns": {"text": "t", "ignored": "-"}, "files": {"train": "t"}}}]},
            "ignored: a list of labels expected",
        ),
        ({"models": "peer=FOLDER"}, "'models' must be a list"),
        ({"models": ["..=majority"]}, "model '..=majority': a name with letters or digits"),
        ({"tasks": [".."]}, "the task '..': a name of letters"),
        ({"models": ["./nowhere"]}, "model './nowhere': there is no folder"),
        ({"tasks": [{"tnews": {"metric": "acc"}}]}, "metric: 'acc' is unknown; there are accuracy"),
        (
            {"tasks": [{"cluener": {"borders": "word"}}]},
            "borders: 'word' is unknown; there are",
        ),
        ({"tasks": [{"tnews": {"epochs": 0}}]}, "epochs: a whole number above 0 expected, not 0"),
        ({"tasks": [{"chid": {"blanks": "no"}}]}, "blanks: true or false expected, not 'no'"),
        ({"tasks": [{"tnews": {"learning_rates": 1e-4}}]}, "learning_rates: a list expected"),
        ({"tasks": [{"tnews": {"learning_rates": []}}]}, "learning_rates: numbers above 0 expec"),
        ({"tasks": [{"a": {"columns": {"text": "t"}, "files": {"dev": "d"}}}]}, "train is missing"),
        (
            {"tasks": [{"a": {"columns": {"words": "t"}, "files": {"train": "d"}}}]},
            "'words' is un",
        ),
        (
            {"tasks": [{"a": {"columns": {"text": "t"}, "files": {"train": "t", "valid": "v"}}}]},
            "'valid' is unknown; there are train, dev, test, hidden",
        ),
    ],
)
def test_a_bad_plan_is_refused(run_file, changes, message):
    content = yaml.safe_load(run_file.read_text()) | changes
    run_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        read_plan(run_file, {})


def test_all_models_of_the_experiment_see_the_same_examples():
    def tasks(name: str) -> dict:
        file = Path(__file__).parents[2] / "experiments" / "clue" / f"{name}.yaml"
        plan = read_plan(file, {"models": ["majority"], "data": "d", "output": "o"})
        return {task.name: replace(task, learning_rates=(), borders="") for task in plan.tasks}

    assert tasks("random") == tasks("run")
    assert tasks("peer").items() <= tasks("run").items()
