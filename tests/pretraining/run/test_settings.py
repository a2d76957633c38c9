"""Whatever cannot work is refused before any work, by the file or key that is to blame."""

import json
import shutil

import pytest

from data_collator_wwm import split_row
from pretraining.run.checkpoints import check_folder, check_order, is_superseded
from pretraining.run.configuration import load_run
from pretraining.run.evaluation import evaluation_collator
from pretraining.run.schedules import WarmupStableDecay
from pretraining.run.settings import check_stage
from pretraining.run.stage_data import open_data
from runs import STEPS, make_model_file, run_here, stage_of


@pytest.fixture
def refused(workspace, tmp_path):
    """Returns `refused(*arguments)`: the message with which the script ends."""

    def refused(*arguments: str) -> str:
        output = [f"output_dir={tmp_path / 'refused'}"]
        with pytest.raises(SystemExit) as exit_info:
            run_here(workspace, *output, *arguments)
        assert not (tmp_path / "refused" / "stage1").exists()
        return str(exit_info.value)

    return refused


def test_rows_that_are_missing_or_damaged_are_refused(refused, workspace, tmp_path):
    assert "nowhere is not a row set" in refused("stage1.train_rows=nowhere")
    damaged = tmp_path / "rows"
    damaged.mkdir()
    for file in (workspace / "rows-64").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    shard = damaged / "rows-00000-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "rows-00000-00000.arrow: truncated" in refused(f"stage1.train_rows={damaged}")
    shard.write_bytes((workspace / "rows-64" / shard.name).read_bytes()[:-100] + bytes(100))
    assert "rows-00000-00000.arrow: damaged" in refused(f"stage2.train_rows={damaged}")


def test_rows_of_another_tokenizer_are_refused(refused, workspace, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    for file in (workspace / "rows-64").iterdir():
        (rows / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((rows / "manifest.json").read_text(encoding="utf-8"))
    manifest["tokenizer_sha256"] = "0" * 64
    (rows / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    message = refused(f"stage1.train_rows={rows}")
    assert "stage1.train_rows: its rows were made with another tokenizer" in message


def test_a_model_that_cannot_work_is_refused(refused, tmp_path):
    assert "odd head size 33" in refused(make_model_file(tmp_path, hidden_size=66))
    assert "unknown key 'hiden_size'" in refused(make_model_file(tmp_path, hiden_size=4))
    message = refused(make_model_file(tmp_path, max_position_embeddings=128))
    assert "stage2.train_rows: its rows of 256 tokens are longer than" in message
    message = refused(make_model_file(tmp_path, vocab_size=30_000))
    assert "vocab_size 30000 does not fit the tokenizer" in message
    message = refused(make_model_file(tmp_path, vocab_size=256_000))
    assert "vocab_size 256000, but rows hold ids of 15 bits" in message
    (tmp_path / "other.json").write_text("{", encoding="utf-8")
    assert "other.json: not a JSON file" in refused(f"model={tmp_path / 'other.json'}")
    assert "nowhere.json does not exist" in refused("model=nowhere.json")


def test_stage_two_needs_stage_ones_weights(refused):
    message = refused("--stage", "2")
    assert "stage 2 starts from stage 1's weights" in message
    assert "stage2.init_from" in message
    assert "is not a model folder" in refused("stage2.init_from=nowhere", "--stage", "2")


def test_settings_that_cannot_work_are_refused(refused):
    assert "unknown key stage1.training.max_step" in refused("stage1.training.max_step=3")
    assert "max_steps is missing" in refused("stage2.training.max_steps=0")
    assert "learning_rate: warmup_steps 60" in refused("stage1.learning_rate.warmup_steps=60")
    assert "mask_rate: warmup_steps 60" in refused("stage1.mask_rate.warmup_steps=60")
    assert "fp16: a step whose gradients overflow" in refused("stage1.training.fp16=true")
    assert "checkpoint cannot be resumed" in refused("stage1.training.save_only_model=true")
    assert "bf16_full_eval: the evaluation" in refused("training.bf16_full_eval=true")
    for name in ("bf16", "torch_compile"):
        message = refused(f"stage1.training.{name}=true", f"stage2.training.{name}=false")
        assert f"training.{name} is one thing in one stage and another in the other" in message
    assert "hub_revision is decided by --push_to_hub" in refused("training.hub_revision=v2")
    split = "stage1.training.accelerator_config={split_batches: true}"
    assert "split_batches would divide rows_per_step" in refused(split)
    split = "stage1.training.accelerator_config={gradient_accumulation_kwargs: {num_steps: 2}}"
    assert "num_steps would change how many rows a step has" in refused(split)
    workers = "stage2.training.dataloader_persistent_workers=true"
    assert "needs dataloader_num_workers of at least 1" in refused(workers)
    for name in ("save", "eval", "logging"):
        message = refused(f"stage2.training.{name}_strategy=epoch")
        assert (
            f"stage2.training.{name}_strategy: to Trainer the whole stage is one epoch" in message
        )
    message = refused("stage2.training.metric_for_best_model=accuracy")
    assert "accuracy is not measured; choose from loss, bits_per_character, " in message
    assert "batch_eval_metrics is decided by" in refused("training.batch_eval_metrics=true")
    assert "seed must be at least 0, got -1" in refused("seed=-1")
    assert "stage2.rows_per_step must be at least 1" in refused("stage2.rows_per_step=0")
    batch = "per_device_train_batch_size"
    assert f"stage2.training.{batch} must be at least 1" in refused(f"stage2.training.{batch}=0")
    message = refused("stage1.eval_rows=null", "stage1.training.eval_strategy=steps")
    assert "stage1.eval_rows is missing" in message


def test_choices_and_rates_that_do_not_exist_are_refused(refused):
    message = refused("stage1.learning_rate.schedule=cosine")
    assert "learning_rate.schedule must be one of damped_cosine, wsd" in message
    assert "decay must be one of linear, sqrt" in refused("stage1.learning_rate.decay=cubic")
    assert "decay_share must lie" in refused(
        "stage1.learning_rate.schedule=wsd", "stage1.learning_rate.decay_share=2"
    )
    assert "masking must be one of words, tokens" in refused("stage1.masking=characters")
    assert "stage1.muon.peak must be above 0" in refused("stage1.muon.peak=0")


def test_muon_under_fsdp_is_refused(refused, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "stage2.muon needs whole matrices" in refused("stage2.muon.peak=2e-3")


def test_the_second_stage_is_checked_with_the_model_that_the_first_hands_on(workspace, tmp_path):
    make_model_file(tmp_path, max_position_embeddings=64)
    (tmp_path / "other.json").rename(tmp_path / "config.json")
    changes = [f"stage1.init_from={tmp_path}", f"output_dir={tmp_path / 'run'}"]
    run = load_run(str(workspace / "run.yaml"), changes)
    first, second = (check_stage(run, number, alone=False) for number in (1, 2))
    assert first.config.max_position_embeddings == second.config.max_position_embeddings == 64
    with pytest.raises(ValueError, match="its rows of 256 tokens are longer"):
        open_data(second)


def test_special_tokens_of_fresh_weights_are_the_tokenizers(workspace, tmp_path):
    others = {f"{name}_token_id": 9 for name in ("pad", "cls", "sep", "mask", "bos", "eos")}
    settings, _ = stage_of(workspace, make_model_file(tmp_path, **others))
    tokenizer = settings.tokenizer
    for name in ("pad", "cls", "sep", "mask"):
        expected = getattr(tokenizer, f"{name}_token_id")
        assert getattr(settings.config, f"{name}_token_id") == expected
    assert settings.config.bos_token_id == tokenizer.cls_token_id
    assert settings.config.eos_token_id == tokenizer.sep_token_id


def test_paths_may_begin_at_home(workspace, monkeypatch):
    monkeypatch.setenv("HOME", str(workspace))
    names = ("model=~/model.json", "output_dir=~/runs", "stage1.train_rows=~/rows-64")
    settings, _ = stage_of(workspace, *names)
    assert settings.folder == workspace / "runs" / "stage1"
    assert settings.arguments.output_dir == str(settings.folder)


def test_the_schedule_of_the_run_file_is_the_one_of_training(workspace):
    wsd = ["schedule=wsd", "decay_share=0.4", "decay=sqrt"]
    settings, _ = stage_of(workspace, *(f"stage1.learning_rate.{each}" for each in wsd))
    expected = WarmupStableDecay(2e-3, 1e-4, STEPS[1], 3, decay_share=0.4, decay="sqrt")
    assert settings.learning_rate == expected


def test_fewer_bits_are_better_where_the_best_checkpoint_is_kept(workspace):
    """Trainer alone would keep the worst."""
    best = ["training.eval_strategy=steps", "training.load_best_model_at_end=true"]
    for metric, more in (("bits_per_character", False), ("masked_accuracy", True)):
        settings, _ = stage_of(workspace, *best, f"training.metric_for_best_model={metric}")
        assert settings.arguments.greater_is_better is more
    for asked in (best, ["training.eval_strategy=steps", "training.save_strategy=best"]):
        settings, _ = stage_of(workspace, *asked)
        assert settings.arguments.metric_for_best_model == "bits_per_character"
        assert settings.arguments.greater_is_better is False


def test_fused_adamw_is_what_a_run_gets_by_default(workspace):
    settings, _ = stage_of(workspace)
    assert settings.arguments.optim == "adamw_torch_fused"


def test_tokens_are_masked_singly_where_the_run_file_says_so(workspace):
    """Evaluation masks words in both, so that runs can be compared."""
    (_, words), (_, tokens) = (
        stage_of(workspace, f"stage1.masking={masking}") for masking in ("words", "tokens")
    )
    row = words.rows[0]
    assert max(words.collator.units(*split_row(row[None]))[2]) > 1
    assert max(tokens.collator.units(*split_row(row[None]))[2]) == 1
    assert evaluation_collator(tokens.eval_rows).whole_words


def test_an_optimizer_whose_package_is_missing_is_refused(refused, monkeypatch):
    available = "is_torch_optimi_available"
    monkeypatch.setattr(f"transformers.trainer_optimizer.{available}", lambda: False)
    message = refused("stage2.training.optim=stable_adamw")
    assert "stage2.training.optim: You need to install `torch-optimi`" in message


def test_rows_that_cannot_be_divided_evenly_are_refused(refused):
    message = refused("stage2.rows_per_step=3")
    assert (
        "stage2.rows_per_step: 3 rows cannot be divided evenly among 1 processes in batches of 2"
        in message
    )
    message = refused("stage1.batch_warmup.rows=5", "stage1.batch_warmup.steps=5")
    assert "stage1.batch_warmup: rows must lie between 2 (one for each batch) and 4" in message
    assert "gradient_accumulation_steps is decided by" in refused(
        "stage1.training.gradient_accumulation_steps=2"
    )
    assert "drop_last is decided by" in refused("training.dataloader_drop_last=true")


@pytest.mark.parametrize(
    ("change", "name"), [("seed=6", "seed"), ("stage1.rows_per_step=8", "rows_per_step")]
)
def test_a_run_is_not_resumed_in_another_order(workspace, run_dir, change, name):
    settings, data = stage_of(workspace, f"output_dir={run_dir}", change)
    with pytest.raises(ValueError, match=f"stage1 was begun with another {name}, so its training"):
        check_order(settings, data)


def test_a_finished_stage_keeps_its_length(workspace, run_dir):
    for steps in (STEPS[1], STEPS[1] + 5, STEPS[1] - 5):
        change = f"stage1.training.max_steps={steps}"
        settings, _ = stage_of(workspace, f"output_dir={run_dir}", change)
        if steps == STEPS[1]:
            check_folder(settings, resume=True)
        else:
            with pytest.raises(ValueError, match=rf"after {STEPS[1]} steps, and .* is {steps}\."):
                check_folder(settings, resume=True)


def test_a_checkpoint_beyond_the_last_step_is_not_taken_for_the_end(workspace, run_dir, tmp_path):
    newest = max((run_dir / "stage1").glob("checkpoint-*"), key=lambda each: each.stat().st_mtime)
    shutil.copytree(newest, tmp_path / "stage1" / newest.name)
    step = int(newest.name.removeprefix("checkpoint-"))
    for steps in (step, step - 1):
        change = f"stage1.training.max_steps={steps}"
        settings, _ = stage_of(workspace, f"output_dir={tmp_path}", change)
        if steps == step:
            check_folder(settings, resume=True)
        else:
            with pytest.raises(ValueError, match=rf"{newest.name} is beyond step {steps}"):
                check_folder(settings, resume=True)


def test_weights_of_stage_two_are_not_replaced_by_those_of_stage_one(workspace, run_dir, tmp_path):
    settings, _ = stage_of(workspace, f"output_dir={run_dir}")
    assert is_superseded(settings)
    settings, _ = stage_of(workspace, f"output_dir={tmp_path}")
    assert not is_superseded(settings)


def test_an_earlier_run_is_not_overwritten(workspace, run_dir):
    with pytest.raises(SystemExit, match=r"stage1 holds an earlier run\. Add --resume"):
        run_here(workspace, f"output_dir={run_dir}")


def test_a_second_stage_does_not_go_on_under_another_first(workspace, run_dir, tmp_path):
    for number in (1, 2):
        ignored = shutil.ignore_patterns("final", "runs", "checkpoint-10")
        shutil.copytree(run_dir / f"stage{number}", tmp_path / f"stage{number}", ignore=ignored)
    with pytest.raises(SystemExit, match=r"stage 2 has begun, from .*final is not there\. Go on"):
        run_here(workspace, f"output_dir={tmp_path}", "--resume")
    # One that began from another folder is nothing to the first.
    other = f"stage2.init_from={run_dir / 'stage1' / 'final'}"
    settings, _ = stage_of(workspace, f"output_dir={tmp_path}", other)
    check_folder(settings, resume=True)
