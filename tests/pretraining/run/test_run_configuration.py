"""The run file: what it holds, what overrides change, and what is refused before any work."""

import pytest
import yaml

from pretraining.run.configuration import RunConfigError, load_run

RUN = {
    "model": "configs/tiny.json",
    "tokenizer": ".",
    "output_dir": "runs/x",
    "seed": 3,
    "training": {"logging_steps": 1},
    "stage1": {
        "train_rows": "rows/a",
        "rows_per_step": 8,
        "learning_rate": {"peak": 1e-3, "minimum": 1e-4, "warmup_steps": 2},
        "training": {"max_steps": 10},
    },
}


@pytest.fixture
def write(tmp_path):
    def write(values):
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.dump(values), encoding="utf-8")
        return str(path)

    return write


def test_a_run_file_becomes_typed_settings(write):
    run = load_run(write(RUN))
    assert run.stage1.learning_rate.peak == 1e-3
    assert run.stage1.learning_rate.warmup_steps == 2
    assert run.stage1.mask_rate.maximum == 0.30
    assert run.stage2 is None


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001"])
def test_numbers_in_scientific_notation_are_numbers(write, number):
    text = yaml.dump(RUN).replace("peak: 0.001", f"peak: {number}")
    assert load_run(write(text)).stage1.learning_rate.peak == 1e-3


def test_overrides_replace_single_values(write):
    overrides = ["stage1.learning_rate.peak=5e-4", "stage1.training.max_steps=7", "seed=9"]
    run = load_run(write(RUN), overrides)
    assert run.stage1.learning_rate.peak == 5e-4
    assert run.stage1.learning_rate.minimum == 1e-4
    assert run.stage1.training["max_steps"] == 7
    assert run.seed == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage1.lerning_rate.peak=1"], "unknown key stage1.lerning_rate.*'learning_rate'"),
        (["stage1.training.max_step=1"], "unknown key stage1.training.max_step.*'max_steps'"),
        (["stage1.training.learning_rate=1"], "stage1.training.learning_rate is decided by"),
        (["training.push_to_hub=true"], "training.push_to_hub is decided by --push_to_hub"),
        (["stage1.learning_rate.peak=fast"], "stage1.learning_rate.peak must be a float"),
        (["seed=1.5"], "seed must be a int"),
        (["stage1.train_rows=7"], "stage1.train_rows must be a str"),
        (["stage1=7"], "stage1 must be a group of keys"),
        (["seed"], "not of the form"),
        (["seed.x=1"], "seed is not a group"),
    ],
)
def test_a_wrong_override_names_the_key(write, overrides, message):
    with pytest.raises(RunConfigError, match=message):
        load_run(write(RUN), overrides)


def test_a_missing_key_is_named(write):
    values = {key: value for key, value in RUN.items() if key != "tokenizer"}
    with pytest.raises(RunConfigError, match=r"run.yaml: the key tokenizer is missing"):
        load_run(write(values))


def test_a_run_without_stages_is_refused(write):
    with pytest.raises(RunConfigError, match="neither stage1 nor stage2"):
        load_run(write({key: value for key, value in RUN.items() if key != "stage1"}))


def test_a_stage_that_is_not_there_is_refused(write):
    with pytest.raises(RunConfigError, match="no stage2"):
        load_run(write(RUN)).stage(2)


def test_a_missing_or_broken_file_is_named(write, tmp_path):
    with pytest.raises(RunConfigError, match=r"nowhere\.yaml: no such run file"):
        load_run(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(RunConfigError, match=r"run.yaml: not a YAML file"):
        load_run(write("model: [unclosed"))
    with pytest.raises(RunConfigError, match="expected keys"):
        load_run(write("- a list"))
