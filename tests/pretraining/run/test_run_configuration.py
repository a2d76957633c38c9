"""The run file: what it holds, what overrides change, and what is refused before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pretraining.run.configuration import RunConfigError, load_run

ROOT = Path(__file__).parents[3]
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
        (["training.ignore_data_skip=true"], "ignore_data_skip is decided by the training order"),
        (["training.push_to_hub=true"], "training.push_to_hub is decided by --push_to_hub"),
        (
            ["stage1.learning_rate.peak=fast"],
            "stage1.learning_rate.peak must be a number, got 'fast'",
        ),
        (["seed=1.5"], "seed must be a whole number, got 1.5"),
        (["stage1.train_rows=7"], "stage1.train_rows must be text, got 7; put it in quotes"),
        (["stage1=7"], "stage1 must be a group of keys"),
        (["seed"], "not of the form"),
        (["seed.x=1"], "seed is not a group"),
        (["seed=[1"], "not YAML"),
    ],
)
def test_a_wrong_override_names_the_key(write, overrides, message):
    with pytest.raises(RunConfigError, match=message):
        load_run(write(RUN), overrides)


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("eval_strategy", "no", "no"),
        ("eval_strategy", "false", "no"),
        ("save_strategy", "no", "no"),
        ("logging_strategy", "steps", "steps"),
        ("bf16", "yes", True),
        ("tf32", "off", False),
        ("torch_compile", "On", True),
        ("max_steps", "1e2", 100),
        ("save_steps", "20", 20.0),
        ("dataloader_num_workers", "2.0", 2),
        ("weight_decay", "1E-2", 0.01),
        ("max_grad_norm", "1", 1.0),
        ("adam_beta2", ".98", 0.98),
        ("run_name", "no", "no"),
        ("run_name", '"2026"', "2026"),
        ("report_to", "[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("optim", "adamw_torch_fused", "adamw_torch_fused"),
        ("gradient_checkpointing_kwargs", "{use_reentrant: false}", {"use_reentrant": False}),
    ],
)
def test_a_value_is_read_as_the_person_meant_it(write, key, written, meant):
    text = yaml.dump({key: value for key, value in RUN.items() if key != "training"})
    run = load_run(write(f"{text}\ntraining:\n  {key}: {written}\n"))
    assert run.training[key] == meant
    assert type(run.training[key]) is type(meant)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("eval_strategy: step", "training.eval_strategy must be one of no, steps, epoch.*'steps'"),
        ("eval_strategy: yes", "training.eval_strategy must be one of no, steps, epoch"),
        ("optim: adamw_fused", "training.optim must be one of .*Did you mean"),
        ("bf16: maybe", "training.bf16 must be true or false, got 'maybe'"),
        ("bf16: 1", "training.bf16 must be true or false, got 1"),
        ("max_steps: 1.5", "training.max_steps must be a whole number, got 1.5"),
        ("max_steps: '100'", "training.max_steps must be a whole number, got '100'"),
        ("logging_steps: often", "training.logging_steps must be a number, got 'often'"),
        ("run_name: 2026", 'training.run_name must be text, got 2026; put it in quotes: "2026"'),
        ("report_to: false", "training.report_to must be text or a list, got False"),
        ("label_names: labels", "training.label_names must be a list, got 'labels'"),
        ("bf16: true\n  bf16: false", "the key 'bf16' stands there twice"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_its_key(write, change, message):
    text = yaml.dump({key: value for key, value in RUN.items() if key != "training"})
    with pytest.raises(RunConfigError, match=message):
        load_run(write(f"{text}\ntraining:\n  {change}\n"))


def test_keys_left_empty_have_their_defaults(write):
    text = yaml.dump({key: value for key, value in RUN.items() if key not in ("training", "seed")})
    run = load_run(write(f"{text}\ntraining:\nseed:\nstage2:\n"))
    assert (run.training, run.seed, run.stage2) == ({}, 0, None)


def test_a_locale_without_the_paths_characters_is_named(write, tmp_path):
    """In the file, in an override, and as its name; under ASCII, which Python has to be told."""
    rows = "数据/行"
    plain = Path(write(RUN))
    named = plain.rename(tmp_path / "运行.yaml")
    code = (
        "import sys\n"
        "from pretraining.run.configuration import RunConfigError, load_run\n"
        "for path, *overrides in (sys.argv[1:2], sys.argv[2:4], sys.argv[4:5]):\n"
        "    try:\n"
        "        load_run(path, overrides)\n"
        "    except RunConfigError as error:\n"
        "        print(ascii(str(error)))\n"
    )
    plain.write_text(yaml.dump(RUN | {"output_dir": rows}), encoding="utf-8")
    (tmp_path / "ascii.yaml").write_text(yaml.dump(RUN), encoding="utf-8")
    arguments = [plain, tmp_path / "ascii.yaml", f"output_dir={rows}", named]
    told = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(told) == 3
    for message, where in zip(told, ("output_dir", "command line", "command line"), strict=True):
        assert where in message
        assert "under the locale in force, whose file names are ascii" in message
        assert "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8" in message


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
    with pytest.raises(RunConfigError, match=r"run.yaml: not YAML"):
        load_run(write("model: [unclosed"))
    with pytest.raises(RunConfigError, match="keys and values expected"):
        load_run(write("- a list"))
