"""Results: the table, the page, the card and the submission files."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from finetuning.predictions import predictions_file, read_predictions, write_predictions
from finetuning.results import (
    changed_settings,
    collect,
    line,
    mean,
    page,
    summarize,
    table,
    write_card,
)
from finetuning.submission import write_submission


def result(task: str, model: str, dev: float, seed=None, rate=None, **others) -> dict:
    settings = {
        **{"task": task, "model": model, "seed": seed, "learning_rate": rate},
        **{"metric": "accuracy", "head": "classification", "max_length": 128},
        **{"train_examples": None, "dev_examples": None, "protocol": "CLUE", "hub": "clue/clue"},
        "examples": {"train": 1000, "dev": 100},
    }
    scores = {"dev": {"accuracy": dev}}
    of_all = {"file": f"{model}/{task}/{seed}.json", "inexact": {}, "seconds": 3.0}
    return {"settings": settings, "scores": scores} | of_all | others


def hidden(label: str) -> dict:
    return {"predictions": {"hidden": [[0, {"label": label, "score": 0.9}]]}}


RESULTS = [
    result("ocnli", "ours", 0.40, 0, 1e-5, **hidden("neutral")),
    result("ocnli", "ours", 0.50, 0, 1e-4, **hidden("entailment")),
    result("ocnli", "ours", 0.54, 1, 1e-4, **hidden("contradiction")),
    result("ocnli", "majority", 0.374, predictions={}),
]


def test_seeds_of_the_rate_that_was_best_on_the_first_are_averaged():
    ours = next(one for one in summarize(RESULTS) if one.settings["model"] == "ours")
    assert ours.scores == {("dev", "accuracy"): [0.50, 0.54]}


def test_of_rates_that_are_equally_good_the_lowest_counts():
    tied = [
        result("ocnli", "ours", 0.5, 0, 1e-4),  # file names put it first
        result("ocnli", "ours", 0.5, 0, 3e-5),
        result("ocnli", "ours", 0.6, 1, 3e-5),
    ]
    assert summarize(tied)[0].scores == {("dev", "accuracy"): [0.5, 0.6]}


def test_seeds_at_another_rate_than_the_best_are_not_dropped_unseen():
    better = result("ocnli", "ours", 0.60, 0, 1e-5)
    with pytest.raises(ValueError, match=r"ours/ocnli/1\.json: seed 0 is better at the rate 1e-05"):
        summarize([better, *RESULTS[1:]])


def test_a_folder_may_move_and_names_on_the_hub_are_other_models():
    moved = (
        {"model_files": "5f", "model_source": "a/base"},
        {
            "model_files": "5f",
            "model_source": "b/base",
        },
    )
    assert changed_settings(*moved) == []
    files = {"files": ["a/train.csv"], "content": "77"}
    assert changed_settings(files, {"files": ["b/train.csv"], "content": "77"}) == []
    assert changed_settings(files, {"files": ["b/train.csv"], "content": "78"}) == ["content"]
    assert changed_settings({"files": ["a"]}, {"files": ["b"]}) == ["files"]
    on_the_hub = [one | {"model_files": ""} for one in moved]
    assert changed_settings(*on_the_hub) == ["model_source"]


def test_a_hidden_test_that_came_later_changes_no_result():
    before = {"examples": {"train": 9, "dev": 3}, "files": {"train": ["train.json"]}}
    after = {"examples": before["examples"] | {"hidden": 4}, "files": before["files"]}
    assert changed_settings(before, after) == []
    assert changed_settings(before, after | {"examples": {"train": 8, "dev": 3}}) == ["examples"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model_files",
            "newer",
            r"ours/ocnli/0\.json and ours/ocnli/1\.json were made .* \(model_files\)",
        ),
        ("examples", {"train": 9, "dev": 9}, r"made with different settings \(examples\)"),
    ],
)
def test_unlike_results_are_not_averaged(key, value, message):
    other = result("ocnli", "ours", 0.54, 1, 1e-4)
    other["settings"][key] = value
    with pytest.raises(ValueError, match=message):
        summarize([RESULTS[1], other])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "fp32"}, "dtype"),
        ({"device": "cuda:0"}, "device"),
        ({"compiled": True}, "compiled"),
        ({"versions": {"torch": "2.12", "transformers": "5.23"}}, "torch"),
    ],
)
def test_results_of_unlike_environments_are_not_averaged(changes, named):
    here = {"device": "cpu", "dtype": "bf16", "versions": {"torch": "2.13", "transformers": "5.23"}}
    with pytest.raises(ValueError, match=rf"different settings \({named}\)"):
        summarize([RESULTS[1] | here, RESULTS[2] | here | changes])
    first, second = here | {"device": "cuda:0"}, here | {"device": "cuda:1"}
    assert summarize([RESULTS[1] | first, RESULTS[2] | second])


def test_models_that_saw_other_examples_do_not_stand_side_by_side():
    other = result("ocnli", "theirs", 0.54, 0, 1e-4)
    other["settings"]["examples"] = {"train": 500, "dev": 100}
    with pytest.raises(ValueError, match="theirs was not given the examples that the others had"):
        table([RESULTS[1], other])
    other["settings"] |= {"examples": RESULTS[1]["settings"]["examples"], "content": {"dev": "a1"}}
    assert table([RESULTS[1], other])  # the first results do not tell their content
    third = result("ocnli", "third", 0.54, 0, 1e-4)
    third["settings"]["content"] = {"dev": "b2"}
    with pytest.raises(ValueError, match="third and another model were given other texts"):
        table([other, third])
    with pytest.raises(ValueError, match="the results of seed 0 are missing"):
        table([RESULTS[2]])


def test_the_table_has_published_rows_beside_ours():
    head, _, row = table(RESULTS).splitlines()
    assert head == (
        "| task | split | score | ours | majority | ERNIE-3.0 Nano (published) | "
        "MiniRBT-h256 (published) |"
    )
    more = "70.6 (50k of train) | 68.7 (50k of train)"
    assert row == f"| ocnli | dev | accuracy | 52.0 ± 2.8 (2) | 37.4 | {more} |"


@pytest.mark.parametrize("part", ["train", "dev"])
def test_published_scores_are_left_out_beside_subsets(part):
    few = result("afqmc", "ours", 0.6, 0, 1e-4)
    few["settings"][f"{part}_examples"] = few["settings"]["examples"][part]
    assert "published" not in table([few])
    both = [few, result("tnews", "ours", 0.5, 0, 1e-4)]
    cells = [row.split(" | ")[4] for row in table(both).splitlines()[2:]]
    assert cells == ["–", "54.6"]


def test_test_comes_before_dev():
    scores = {"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.4}}
    rows = table([result("mine", "ours", 0.5, 0, 1e-4, scores=scores)]).splitlines()[2:]
    assert rows == ["| mine | test | accuracy | 40.0 |", "| mine | dev | accuracy | 50.0 |"]


def test_a_model_that_a_task_is_not_for_has_no_score():
    results = [*RESULTS, result("mine", "ours", 0.9, 0, 1e-4)]
    assert "| mine | dev | accuracy | 90.0 | – | – | – |" in table(results)
    assert mean(None) == "–"


def test_the_table_names_subsets():
    few = result("tnews", "ours", 0.5, 0, 1e-4)
    few["settings"] |= {"train_examples": 1000, "dev_examples": 100}
    expected = "| tnews (1,000 of train) | dev (100 of dev) | accuracy | 50.0 |"
    assert table([few]).splitlines()[-1].startswith(expected)
    few["settings"] |= {"train_examples": 4000, "dev_examples": 4000}  # more than there are
    assert table([few]).splitlines()[-1].startswith("| tnews | dev | accuracy | 50.0 |")


def test_a_subset_of_test_is_named_too():
    scores = {"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.4}}
    few = result("drcd_dev", "ours", 0.5, 0, 1e-4, scores=scores)
    few["settings"] |= {"test_examples": 50, "examples": {"train": 1000, "dev": 100, "test": 50}}
    assert "| drcd_dev | test (50 of test) | accuracy | 40.0 |" in table([few])
    assert "test 50 (50 of test drawn by seed 0)" in page([few])


def test_a_result_in_one_line_says_when_a_run_diverged():
    trained = {"history": [{}, {}], "best_epoch": 1, "loss": 0.5}
    expected = "ocnli, ours, seed 0, rate 0.0001, dev accuracy 50.0%, epoch 1 of 2, 3 s"
    assert line(RESULTS[1] | trained) == expected
    assert "DIVERGED" in line(RESULTS[1] | trained | {"loss": None})


def test_the_page_says_what_was_measured():
    cut = {"inexact": {"dev": {"text is cut": 7}}}
    few = result("tnews", "ours", 0.5, 0, 1e-4, **cut)
    few["settings"]["train_examples"] = 1000
    assert (
        "- **tnews**, ours: train 1,000, dev 100 (1,000 of train drawn by seed 0); "
        "rate 0.0001, 128 tokens; dev: 7 × text is cut. CLUE." in page([few])
    )


def test_the_card_gets_both_forms_of_results(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: zh\n---\n# A model\n", encoding="utf-8")
    write_card(RESULTS, "ours", tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    [entry] = card.data.eval_results
    assert (entry.metric_value, entry.dataset_split) == (52.0, "validation")
    assert card.data.model_name == "A model"
    assert card.data.language == "zh"
    assert "# A model" in card.text
    [hub] = yaml.safe_load((tmp_path / ".eval_results" / "clue.yaml").read_text())
    assert hub["dataset"] == {"id": "clue/clue", "task_id": "ocnli"}
    assert hub["value"] == 52.0
    with pytest.raises(ValueError, match="no results of 'theirs'; there are majority, ours"):
        write_card(RESULTS, "theirs", tmp_path)


def test_the_card_names_subsets_and_keeps_what_others_measured(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: zh\n---\n# A model\n", encoding="utf-8")
    write_card(RESULTS, "ours", tmp_path)
    few = result("tnews", "ours", 0.5, 0, 1e-4)
    few["settings"] |= {"train_examples": 1000, "dev_examples": 100}
    for _ in range(2):
        write_card([few], "ours", tmp_path)
    entries = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [entry.dataset_name for entry in entries] == ["ocnli", "tnews"]
    assert entries[1].metric_name == "accuracy, mean of 1 seed, 1,000 of train, 100 of dev"
    [_, hub] = yaml.safe_load((tmp_path / ".eval_results" / "clue.yaml").read_text())
    assert "1,000 of train" in hub["notes"]


def test_the_seed_that_is_best_on_dev_answers_the_hidden_test(tmp_path):
    [file] = write_submission(RESULTS, "ours", tmp_path)
    assert file.name == "ocnli_50k_predict.json"
    assert json.loads(file.read_text()) == {"id": 0, "label": "contradiction"}
    with pytest.raises(ValueError, match="'majority' has answered no hidden test"):
        write_submission(RESULTS, "majority", tmp_path)


@pytest.mark.parametrize(("answers", "version"), [(290, "10"), (2_574, "11")])
def test_cluewsc_is_submitted_to_the_test_that_it_answers(tmp_path, answers, version):
    found = [[number, {"label": "true", "score": 0.9}] for number in range(answers)]
    given = result("cluewsc2020", "ours", 0.7, 0, 1e-4, predictions={"hidden": found})
    [file] = write_submission([given], "ours", tmp_path)
    assert file.name == f"cluewsc{version}_predict.json"


def test_predictions_come_back_from_their_file(tmp_path):
    found = {"dev": [[3, {"label": "neutral"}]], "hidden": [["a", [[0, 2, "address", "长沙"]]]]}
    write_predictions(tmp_path / "seed-0-rate-0.001.json", found)
    assert read_predictions(tmp_path / "seed-0-rate-0.001.json") == found
    predictions_file(tmp_path / "seed-0-rate-0.001.json").unlink()  # as in a published result
    assert read_predictions(tmp_path / "seed-0-rate-0.001.json") == {}


def test_entities_are_submitted_with_their_last_character(tmp_path):
    found = [[0, 2, "address", "长沙"], [5, 7, "address", "长沙"]]
    entities = result("cluener", "ours", 0.5, 0, 1e-4, predictions={"hidden": [[3, found]]})
    entities["settings"]["head"] = "tokens"
    [file] = write_submission([entities], "ours", tmp_path)
    expected = {"id": 3, "label": {"address": {"长沙": [[0, 1], [5, 6]]}}}
    assert json.loads(file.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize(
    ("task", "file", "key"),
    [("c3", "c311_predict.json", "label"), ("fewclue_chid", "chidf_predict.json", "answer")],
)
def test_choices_are_submitted_by_their_index(tmp_path, task, file, key):
    given = result(task, "ours", 0.5, 0, 1e-4, predictions={"hidden": [[7, 2]]})
    given["settings"]["head"] = "choices"
    [written] = write_submission([given], "ours", tmp_path)
    assert written.name == file
    assert json.loads(written.read_text()) == {"id": 7, key: 2}


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        collect(tmp_path)
