"""experiments/learning_per_hour: equal machine time, runs that go on, and the leaderboard."""

import dataclasses
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.learning_per_hour.experiment import (
    BASE_RUN,
    FOLDER,
    MASKED_TOKENS,
    Experiment,
    Protocol,
    overrides_of,
    read_experiment,
    read_experiments,
    read_protocol,
    steps_of_a_budget,
    with_steps,
)
from experiments.learning_per_hour.results import (
    BEGIN,
    END,
    leaderboard,
    made_with,
    read_results,
    write_leaderboard,
)
from experiments.learning_per_hour.run_queue import Queue, lock, run_all, train
from experiments.learning_per_hour.speed import STEPS_OF_A_TURN, WARM_UP, Turns
from pretraining.run.configuration import load_run
from runs import ROOT, SHAPE

# base.yaml's run made small enough for a test.
SMALL = {
    "tokenizer": ".",
    "stage1.train_rows": "ROWS/rows-64",
    "stage1.rows_per_step": 4,
    "stage1.training.per_device_train_batch_size": 2,
    "training.torch_compile": False,
    "training.bf16": False,
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "experiment", read_experiments(FOLDER / "changes").values(), ids=lambda each: each.name
)
def test_every_experiment_describes_a_run(experiment, tmp_path):
    overrides = overrides_of(experiment, tmp_path, tmp_path / "model.json")
    steps = {number: 400 for number in experiment.stages}
    run = load_run(str(BASE_RUN), with_steps(overrides, steps))
    assert Path(run.stage(1).train_rows).is_relative_to(tmp_path)
    assert "\n" not in experiment.change
    if experiment.name != "base" and experiment.objective == MASKED_TOKENS:
        unchanged = overrides_of(Experiment("base", "none"), tmp_path, tmp_path / "model.json")
        assert run != load_run(str(BASE_RUN), with_steps(unchanged, {1: 400}))


def test_the_protocol_names_what_decides():
    protocol = read_protocol()
    assert list(protocol.held_out) == ["pretraining", "everyday"]
    assert protocol.minutes > 0 < protocol.tokens_per_second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chnge: more", "its keys must be among change, held_out"),
        ("seeds: [1]", "missing 1 required positional argument: 'change'"),
        ("change: more\nseeds: []", "seeds needs one seed or more"),
        ("change: more\nobjective: more", "must be one of masked_tokens, replaced_tokens"),
        ("change: more\ntime_shares: [0.5, 0.4]", "must be above 0 and sum to 1"),
        ("change: [", "not YAML"),
    ],
)
def test_an_experiment_that_cannot_work_is_named(tmp_path, text, message):
    file = tmp_path / "more.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"more\.yaml: .*{message}"):
        read_experiment(file)


def write_experiments(folder: Path, **texts: str) -> Path:
    for name, text in {"base": "change: none", **texts}.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_an_experiment_can_add_to_another(tmp_path):
    folder = write_experiments(
        tmp_path,
        first="change: a\noverrides: {seed: 3, stage1.rows_per_step: 4}\nmodel: {hidden_size: 32}",
        second="change: b\non: first\noverrides: {seed: 4}",
        third="change: c\non: second\nmodel: {num_hidden_layers: 2}\nobjective: replaced_tokens",
        fourth="change: d\non: third",
    )
    experiments = read_experiments(folder)
    third = experiments["third"]
    assert experiments["fourth"].objective == third.objective == "replaced_tokens"
    assert third.overrides == {"seed": 4, "stage1.rows_per_step": 4}
    assert third.model == {"hidden_size": 32, "num_hidden_layers": 2}


def test_experiments_that_name_none_or_each_other_are_refused(tmp_path):
    folder = write_experiments(tmp_path, first="change: a\nspeed_of: none")
    with pytest.raises(ValueError, match=r"first\.yaml: speed_of names no experiment"):
        read_experiments(folder)
    write_experiments(folder, first="change: a\non: second", second="change: b\non: first")
    with pytest.raises(ValueError, match="go in a circle"):
        read_experiments(folder)


def test_warm_ups_keep_their_shares_of_the_steps():
    changes = ["stage1.mask_rate.warmup_steps=500", "stage1.training.max_steps=1000"]
    run = load_run(str(BASE_RUN), with_steps(changes, {1: 3000}))
    assert run.stage1.learning_rate.warmup_steps == 300
    assert run.stage1.mask_rate.warmup_steps == 1500
    assert run.stage1.training["max_steps"] == 3000


def test_a_run_at_half_the_speed_makes_half_the_steps(workspace):
    experiment = Experiment("slow", "slow")
    run = load_run(str(BASE_RUN), overrides_of(experiment, workspace, workspace))
    run.stage1.train_rows = str(workspace / "rows-64")  # 8 × 64 = 512 positions a step
    assert steps_of_a_budget(experiment, run, 10, {1: 5120}) == {1: 100}
    assert steps_of_a_budget(experiment, run, 10, {1: 2560}) == {1: 50}


def test_two_stages_share_the_time(workspace):
    experiment = Experiment("two", "two", time_shares=(0.75, 0.25))
    rows = [
        f"stage{stage}.train_rows={workspace}/rows-{length}"
        for stage, length in ((1, 64), (2, 256))
    ]
    stage2 = ["stage2.rows_per_step=2", "stage2.learning_rate={peak: 1, minimum: 0}"]
    run = load_run(str(BASE_RUN), [*rows, *stage2])
    assert steps_of_a_budget(experiment, run, 10, {1: 5120, 2: 2048}) == {1: 75, 2: 10}


def result(name: str, seed: int, bits: float, **changes) -> dict:
    figures = {"bits_per_character": bits, "masked_accuracy": 0.25}
    known = {"experiment": name, "seed": seed, "minutes": 25.0, "speed_ratios": [0.8]}
    known |= {"tokens": 8_000_000, "stopped": None, "held_out": {"pretraining": figures}}
    return known | changes


EXPERIMENTS = {
    "base": Experiment("base", "none"),
    "better": Experiment("better", "a better thing", verdict="adopted"),
    "wild": Experiment("wild", "a high rate"),
    "later": Experiment("later", "one thing more", on="better"),
}


def test_the_leaderboard_compares_equal_seeds_and_puts_the_best_first():
    results = [
        result("base", 1, 5.0),
        result("base", 2, 5.2),
        result("better", 2, 4.9),
        result("later", 2, 4.85),
        result("wild", 1, 0, held_out={}, stopped="step 7: the loss is 20"),
        result("removed", 1, 1.0),
    ]
    lines = leaderboard(EXPERIMENTS, results).splitlines()
    assert lines[0] == "### 25 minutes"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert [row[0] for row in rows] == ["later", "better", "base", "wild"]
    assert rows[0][1:4] == ["better, one thing more", "4.850", "-0.050"]
    assert rows[1][2:] == ["4.900", "-0.300", "25.0 %", "0.80", "8.0 M", "1", "adopted"]
    assert rows[2][2:4] == ["5.100 ± 0.100", ""]
    assert rows[3][2:4] == ["–", ""]
    assert rows[3][-1] == "stopped: step 7: the loss is 20"


def test_budgets_have_tables_of_their_own():
    results = [result("base", 1, 5.0), result("base", 1, 4.0, minutes=120.0)]
    table = leaderboard(EXPERIMENTS, results)
    assert table.index("### 25 minutes") < table.index("### 120 minutes")
    assert table.count("| base |") == 2


def test_the_leaderboard_leaves_the_rest_of_the_page_alone(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_leaderboard(page, "new \\1")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnew \\1\n\n{END}\nafter\n"
    page.write_text("before", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md: the lines"):
        write_leaderboard(page, "new")


@pytest.fixture
def queue(workspace, tmp_path) -> Queue:
    page = tmp_path / "README.md"
    page.write_text(f"{BEGIN}{END}", encoding="utf-8")
    small = Experiment("small", "a small run", SMALL, SHAPE, speed_of="base")
    return Queue(
        protocol=Protocol(0.01, 1500, {"valid": "ROWS/rows-64"}),
        experiments={
            "base": Experiment("base", "none"),
            "small": small,
            "missing": dataclasses.replace(small, name="missing", held_out={"valid": "nowhere"}),
        },
        rows=workspace,
        work=tmp_path / "work",
        results=tmp_path / "results",
        page=page,
        lock=lock(tmp_path / "work"),
    )


def test_a_result_is_written_where_git_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = made_with()
    assert (found["commit"], found["uncommitted"]) == ("", [])


def test_the_queue_trains_evaluates_and_fills_the_leaderboard(queue, capsys):
    assert not run_all(queue, ["missing", "small"])
    assert "missing: left out: nowhere is not a row set" in capsys.readouterr().out
    (found,) = read_results(queue.results)
    assert found["experiment"] == "small"
    assert found["steps"] == [4]  # 0.6 s × 1,500 tokens/s, at 4 × 64 positions a step
    assert found["tokens"] == 1024
    assert 0 < found["held_out"]["valid"]["bits_per_character"] < 20
    assert found["made_with"]["torch"]
    assert "| small | a small run |" in queue.page.read_text(encoding="utf-8")
    file = queue.result_file(queue.experiments["small"], 1)
    written = file.stat().st_mtime_ns
    assert run_all(queue, ["small"])
    assert file.stat().st_mtime_ns == written  # a finished run is not started again


def test_a_run_that_was_begun_is_not_continued_with_other_settings(queue, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "overrides.json").write_text(json.dumps(["seed=1"]), encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with other settings; remove it"):
        train(queue, folder, ["seed=2"], "masked_tokens")


def test_a_second_queue_is_refused(queue):
    with pytest.raises(ValueError, match="in use by another queue"):
        lock(queue.work)


def test_a_side_waits_after_its_warm_up_and_after_each_turn():
    ours, theirs = multiprocessing.Pipe()
    turns, waited = Turns(theirs), []
    for step in range(1, WARM_UP + 2 * STEPS_OF_A_TURN + 1):
        ours.send(None)  # so that nothing waits long
        turns.on_step_end(None, SimpleNamespace(global_step=step), None)
        if ours.poll():
            assert ours.recv() >= 0
            waited.append(step)
    assert waited == [WARM_UP, WARM_UP + STEPS_OF_A_TURN, WARM_UP + 2 * STEPS_OF_A_TURN]
