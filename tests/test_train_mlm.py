"""Pretraining from end to end, on the example corpus with a very small model.

One run of both stages is made once and looked at from all sides; a second is killed and resumed.
"""

import functools
import itertools
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from transformers import TrainerCallback

import train_mlm
from commands import run_main
from hub_standin import HubStandIn
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.preparation import Preparation
from pretraining.plot_run import plot_runs
from pretraining.run.checkpoints import explain
from pretraining.run.log import TrainingLog
from pretraining.run.replay import show_step
from pretraining.run.schedules import DampedCosine, mask_rate
from pretraining.run.trainer import make_trainer
from runs import (
    LEARNING_RATE,
    MASK_RATE,
    ROOT,
    STEPS,
    command,
    make_model_file,
    run_here,
    stage_of,
    state_of,
)


def training_log(run_dir: Path, stage: int) -> list[dict]:
    file = run_dir / f"stage{stage}" / "final" / "training_log.json"
    return [entry for entry in json.loads(file.read_text(encoding="utf-8")) if "loss" in entry]


@pytest.mark.parametrize("stage", [1, 2])
def test_both_schedules_are_followed_at_every_step(run_dir, stage):
    log = training_log(run_dir, stage)
    rate = DampedCosine(total_steps=STEPS[stage], **LEARNING_RATE)
    masks = functools.partial(mask_rate, total_steps=STEPS[stage], **MASK_RATE)
    assert [entry["step"] for entry in log] == list(range(1, STEPS[stage] + 1))
    for entry in log:
        assert entry["learning_rate"] == pytest.approx(rate(entry["step"] - 1), rel=1e-6)
        assert entry["mask_rate"] == masks(entry["step"] - 1)


def test_the_batch_can_warm_up(workspace, tmp_path):
    output = tmp_path
    changes = ["batch_warmup.rows=2", "batch_warmup.steps=6", "training.max_steps=8"]
    arguments = ["--stage", "1", f"output_dir={output}", *(f"stage1.{each}" for each in changes)]
    run_here(workspace, *arguments)
    log = training_log(output, 1)
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 1 for entry in log)
    assert all(0 <= entry["padding_share"] < 0.5 for entry in log)
    seen = [entry["num_input_tokens_seen"] for entry in log]
    tokens = [after - before for before, after in itertools.pairwise([0, *seen])]
    assert max(tokens[:2]) < min(tokens[4:])


def test_the_model_learns(run_dir):
    log = training_log(run_dir, 1)
    assert log[-1]["loss"] < log[0]["loss"] - 0.5


def test_the_log_tells_speed_and_padding(run_dir, workspace):
    manifest = json.loads((workspace / "rows-64" / "manifest.json").read_text(encoding="utf-8"))
    log = training_log(run_dir, 1)
    assert all(entry["tokens_per_second"] > 0 for entry in log)
    padding = sum(entry["padding_share"] for entry in log) / len(log)
    # Every epoch has the manifest's share; the last one is not complete.
    assert padding == pytest.approx(manifest["padding_share"], abs=0.01)


def test_the_log_tells_bits_operations_and_waiting(run_dir, workspace):
    manifest = json.loads((workspace / "rows-64" / "manifest.json").read_text(encoding="utf-8"))
    per_token = manifest["characters"] / manifest["tokens"]
    for entry in training_log(run_dir, 1):
        bits = entry["loss"] / math.log(2) / per_token
        assert entry["bits_per_character"] == pytest.approx(bits, abs=1e-3)
        assert 0 < entry["matrix_product_share"] < 1
        assert 0 <= entry["data_wait_seconds"] < 60
        assert entry["grad_norm"] > 0


def test_every_log_is_a_line_of_json(run_dir):
    lines = (run_dir / "stage1" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    history = json.loads((run_dir / "stage1" / "final" / "training_log.json").read_text("utf-8"))
    assert [json.loads(line) for line in lines] == history


def test_the_log_goes_to_tensorboard(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run_dir / "stage1" / "runs").iterdir()
    accumulator = EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    for name in ("loss", "learning_rate", "mask_rate", "tokens_per_second", "padding_share"):
        assert f"train/{name}" in tags
    assert "eval/masked_accuracy" in tags


def test_held_out_rows_are_evaluated_at_the_end(run_dir):
    for stage in (1, 2):
        file = run_dir / f"stage{stage}" / "final" / "training_log.json"
        last = [e for e in json.loads(file.read_text(encoding="utf-8")) if "eval_loss" in e][-1]
        assert last["step"] == STEPS[stage]
        assert 0 < last["eval_most_frequent_rate"] < 0.2
        assert 0 <= last["eval_masked_accuracy"] <= 1
        assert last["eval_bits_per_character"] > 0


def test_stage_two_starts_from_stage_ones_weights_and_changes_them(run_dir):
    first, second = (
        ChineseModernBertForMaskedLM.from_pretrained(run_dir / f"stage{stage}" / "final")
        for stage in (1, 2)
    )
    name = "model.layers.0.mlp.Wi.weight"
    a, b = first.state_dict()[name], second.state_dict()[name]
    assert not torch.equal(a, b)
    # Six small updates leave it near; fresh weights would be as far away as it is long.
    assert (a - b).norm() < 0.5 * a.norm()


def test_the_finished_folder_is_ready_for_the_hub(run_dir):
    final = run_dir / "stage2" / "final"
    assert {file.name for file in final.iterdir()} == {
        "README.md",
        "attention_chinese_modernbert.py",
        "backends_chinese_modernbert.py",
        "config.json",
        "configuration_chinese_modernbert.py",
        "model.safetensors",
        "losses_chinese_modernbert.py",
        "modeling_chinese_modernbert.py",
        "products_chinese_modernbert.py",
        "question_answering_chinese_modernbert.py",
        "spans_chinese_modernbert.py",
        "static_chinese_modernbert.py",
        "stream_chinese_modernbert.py",
        "token_classification_chinese_modernbert.py",
        "tokenization_chinese_modernbert.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.json",
    }
    card = (final / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: zh\n")
    assert "| masked accuracy | 0." in card


def test_checkpoints_open_elsewhere_with_equal_logits(run_dir, tmp_path):
    """One from the middle of a run, and a finished folder."""
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        "for number, folder in enumerate(sys.argv[1:]):\n"
        "    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
        "    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()\n"
        "    inputs = tokenizer(['今天[MASK]很好。', '短'], padding=True, return_tensors='pt')\n"
        "    torch.save([dict(inputs), model(**inputs).logits.detach()], f'logits-{number}.pt')\n"
    )
    folders = [run_dir / "stage1" / "checkpoint-40", run_dir / "stage2" / "final"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        check=True,
    )
    for number, folder in enumerate(folders):
        inputs, logits = torch.load(tmp_path / f"logits-{number}.pt")
        model = ChineseModernBertForMaskedLM.from_pretrained(folder).eval()
        assert torch.equal(model(**inputs).logits, logits)


def test_a_second_stage_under_way_goes_on_without_the_first(run_dir, workspace, tmp_path):
    shutil.copytree(run_dir / "stage2", tmp_path / "stage2")
    shutil.rmtree(tmp_path / "stage2" / "final")
    run_here(workspace, "--stage", "2", f"output_dir={tmp_path}", "--resume")
    before, after = (
        load_file(folder / "stage2/final/model.safetensors") for folder in (run_dir, tmp_path)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_resumes_from_the_newest_checkpoint_that_is_whole(
    workspace, run_dir, tmp_path, monkeypatch, caplog
):
    """Two are cut off, in weights and in the optimizer's state; a third has lost its weights."""
    stage = tmp_path / "stage1"
    shutil.copytree(run_dir / "stage1", stage, ignore=shutil.ignore_patterns("final", "runs"))
    for step, name in ((50, "model.safetensors"), (40, "optimizer.pt")):
        file = stage / f"checkpoint-{step}" / name
        file.write_bytes(file.read_bytes()[:-100])
    (stage / "checkpoint-30" / "model.safetensors").unlink()
    error = explain(OSError("gone"), stage_of(workspace, f"output_dir={tmp_path}")[0])
    assert error.endswith(
        f"--resume goes on from the last complete checkpoint, {stage}/checkpoint-20."
    )
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    run_here(workspace, "--stage", "1", f"output_dir={tmp_path}", "--resume")
    assert "missing keys" not in caplog.text
    weights = Path("final", "model.safetensors")
    assert (stage / weights).read_bytes() == (run_dir / "stage1" / weights).read_bytes()


def test_a_killed_run_resumes_as_if_it_had_not_been(workspace, run_dir, tmp_path):
    other = tmp_path
    arguments = ["--stage", "1", f"output_dir={other}"]
    process = subprocess.Popen(command(workspace, *arguments), start_new_session=True)
    while not (other / "stage1" / "checkpoint-20" / "trainer_state.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (other / "stage1" / "final").exists()
    run_here(workspace, *arguments, "--resume")

    lines = (other / "stage1" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"loss"' in line]
    assert steps == [entry["step"] for entry in training_log(run_dir, 1)]
    whole, resumed = training_log(run_dir, 1), training_log(other, 1)
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]
    assert [entry["grad_norm"] for entry in resumed] == [entry["grad_norm"] for entry in whole]
    weights = Path("stage1", "final", "model.safetensors")
    assert (other / weights).read_bytes() == (run_dir / weights).read_bytes()


@pytest.mark.parametrize("optimizer", ["training.optim=stable_adamw", "stage1.muon.peak=2e-3"])
def test_other_optimizers_resume_as_if_they_had_not_been_killed(workspace, tmp_path, optimizer):
    def train(name: str, *arguments: str) -> Path:
        output = tmp_path / name
        steps = ["stage1.training.max_steps=6", "stage1.training.save_steps=3"]
        changes = [optimizer, *steps, "stage1.eval_rows=null"]
        run_here(workspace, "--stage", "1", f"output_dir={output}", *changes, *arguments)
        return output / "stage1"

    whole, broken = train("whole"), train("broken")
    shutil.rmtree(broken / "final")
    shutil.rmtree(broken / "checkpoint-6")
    before = (whole / "checkpoint-3" / "model.safetensors").read_bytes()
    after = (whole / "final" / "model.safetensors").read_bytes()
    assert (
        before
        != after
        == (train("broken", "--resume") / "final" / "model.safetensors").read_bytes()
    )


def test_a_stage_that_ends_early_is_not_taken_for_finished(workspace, tmp_path, monkeypatch):
    """As `enable_jit_checkpoint` ends it at the signal by which a cluster takes a node back."""

    class Signal(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                control.should_save = control.should_training_stop = True

    def interrupted(settings, data, model, callbacks):
        return make_trainer(settings, data, model, [*callbacks, Signal()])

    monkeypatch.setattr(train_mlm, "make_trainer", interrupted)
    with pytest.raises(SystemExit, match=r"stage 1, ended at step 3; --resume goes on from its"):
        run_here(workspace, f"output_dir={tmp_path}")
    assert (tmp_path / "stage1" / "checkpoint-3").is_dir()
    assert not (tmp_path / "stage1" / "final").exists()
    assert not (tmp_path / "stage2").exists()


def test_a_run_that_diverges_stops_and_can_be_replayed(workspace, tmp_path, capsys):
    arguments = ["--stage", "1", f"output_dir={tmp_path}"]
    changes = ["stage1.learning_rate.peak=1e30", "stage1.training.save_steps=1"]
    with pytest.raises(SystemExit) as ended:
        run_here(workspace, *arguments, *changes)
    stopped = json.loads((tmp_path / "stage1" / "stopped.json").read_text("utf-8"))
    step, (first, last) = stopped["step"], stopped["positions"]
    assert f"--replay {step} shows them" in str(ended.value)
    assert (first, last) == (step * 4, step * 4 + 3)
    # The weights of the last checkpoint are from before.
    weights = tmp_path / "stage1" / f"checkpoint-{step}" / "model.safetensors"
    assert all(torch.isfinite(tensor).all() for tensor in load_file(weights).values())

    capsys.readouterr()
    run_here(workspace, *arguments, *changes, "--replay", str(step))
    replayed = capsys.readouterr().out
    assert replayed.count("position ") == 4
    assert f"position {first}:" in replayed


def copy_rows(workspace: Path, folder: Path, length: int) -> Path:
    """Rows that nobody has opened yet."""
    copy = folder / f"rows-{length}"
    if not copy.exists():
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(workspace / copy.name, copy, ignore=hidden)
    return copy


def test_a_plan_tells_what_a_run_will_take_and_trains_nothing(workspace, tmp_path):
    output = tmp_path / "planned"
    rows = [
        f"stage{stage}.{name}_rows={copy_rows(workspace, tmp_path, length)}"
        for stage, length in ((1, 64), (2, 256))
        for name in ("train", "eval")
    ]
    before = state_of(tmp_path)
    # A repository that is named is not made: there is no Hub at this address.
    hub = ["--push_to_hub", "someone/it", "training.report_to=all"]
    shown = subprocess.run(
        command(
            workspace,
            *("--plan", "--picture", str(tmp_path / "plan.png"), *hub),
            *(f"output_dir={output}", "stage1.rows_per_step=8", *rows),
        ),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"},
    ).stdout
    assert "50 steps × 8 rows × 64 tokens = 25,600 positions" in shown
    assert "6 steps × 4 rows × 256 tokens = 6,144 positions" in shown
    assert shown.count("GiB at the most, measured") == 2
    assert shown.count("tokens/s, measured") == 2
    assert shown.count("of the rate of plain matrix products") == 2
    assert not output.exists()
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "plan.png").unlink()
    assert state_of(tmp_path) == before


def test_the_papers_run_is_planned(tmp_path, monkeypatch, capsys):
    """With little text, a small model and one process; steps, batches and schedules are its own."""
    corpus = [str(ROOT / "examples" / "corpus" / "valid.jsonl")]
    changes = [f"output_dir={tmp_path}", "training.use_cpu=true", "training.torch_compile=false"]
    for stage, seq_len, at_once in ((1, 1024, 8), (2, 8192, 1)):
        rows = tmp_path / f"rows-{seq_len}"
        Preparation(corpus, ROOT / "tokenizer.json", seq_len, rows).run()
        changes += [f"stage{stage}.train_rows={rows}", f"stage{stage}.eval_rows={rows}"]
        changes.append(f"stage{stage}.training.per_device_train_batch_size={at_once}")
    changes.append(make_model_file(tmp_path, max_position_embeddings=8192))
    monkeypatch.chdir(ROOT)
    run_main(train_mlm, "configs/large.yaml", "--plan", *changes)
    shown = capsys.readouterr().out
    positions = [int(n.replace(",", "")) for n in re.findall(r"= ([\d,]+) positions", shown)]
    assert positions == [pytest.approx(1.1e12, rel=1e-3), pytest.approx(0.1e12, rel=1e-3)]
    assert "271,000 steps × 4096 rows × 1024 tokens, fewer rows at first" in shown


def test_a_plan_refuses_a_model_beyond_the_memory(workspace, tmp_path):
    enormous = make_model_file(tmp_path, hidden_size=32_768, num_hidden_layers=400)
    with pytest.raises(SystemExit, match=r"AdamW's moments take .*Choose a smaller model"):
        run_here(workspace, "--plan", f"output_dir={tmp_path / 'planned'}", enormous)


def test_a_replay_shows_the_batch_that_the_model_sees(workspace, capsys):
    settings, data = stage_of(workspace)
    show_step(settings, data, 7)
    shown = capsys.readouterr().out
    labels = data.collator([data.order[position] for position in range(28, 32)])["labels"]
    legends = 4 * 3  # the line above each row shows the three ways to mask
    assert shown.count("‹") - legends == (labels != -100).sum() > 0
    with pytest.raises(ValueError, match="stage 1 has the steps 0 to 49"):
        show_step(settings, data, 50)


def test_a_replay_passes_over_places_left_empty_by_the_warm_up(workspace, capsys):
    changes = ["batch_warmup.rows=2", "batch_warmup.steps=6", "training.max_steps=8"]
    show_step(*stage_of(workspace, *(f"stage1.{each}" for each in changes)), 0)
    assert capsys.readouterr().out.count("\nposition ") == 2


def test_a_replay_leaves_nothing_behind(workspace, run_dir, tmp_path):
    rows = copy_rows(workspace, tmp_path, 64)
    before = state_of(tmp_path), state_of(run_dir)
    for output in (run_dir, tmp_path / "none"):
        changes = [f"output_dir={output}", f"stage1.train_rows={rows}"]
        run_here(workspace, "--stage", "1", "--replay", "2", *changes)
    assert (state_of(tmp_path), state_of(run_dir)) == before


def test_a_disk_that_takes_no_more_is_named_and_the_checkpoint_before_stays(workspace, tmp_path):
    output = tmp_path
    arguments = ["--stage", "1", f"output_dir={output}", "stage1.training.max_steps=20"]
    run_here(workspace, *arguments)
    shutil.rmtree(output / "stage1" / "final")
    shutil.rmtree(output / "stage1" / "checkpoint-20")
    finished = subprocess.run(
        command(workspace, *arguments, "--resume"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert finished.returncode == 1
    kept = output / "stage1" / "checkpoint-10"
    assert "takes no more data" in finished.stderr
    assert f"--resume goes on from the last complete checkpoint, {kept}." in finished.stderr
    run_here(workspace, *arguments, "--resume")
    assert (output / "stage1" / "final" / "model.safetensors").exists()


def test_a_lost_data_worker_is_named(workspace, tmp_path):
    output = tmp_path
    arguments = ["--stage", "1", f"output_dir={output}", "training.dataloader_num_workers=1"]
    process = subprocess.Popen(command(workspace, *arguments), stderr=subprocess.PIPE, text=True)
    while not (output / "stage1" / "checkpoint-10" / "trainer_state.json").exists():
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.01)
    psutil.Process(process.pid).children()[-1].kill()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "a data worker was lost" in errors, errors
    assert "--resume goes on from the last complete checkpoint" in errors


def test_a_data_worker_lost_while_an_error_is_told_does_not_cut_it_short(
    workspace, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError("gone")

    def explain(error, settings):
        os.kill(os.getpid(), signal.SIGCHLD)
        return f"{error}; continue like this"

    def as_torch_does(*_):
        raise RuntimeError("DataLoader worker is killed")

    monkeypatch.setattr(train_mlm, "train", fail)
    monkeypatch.setattr(train_mlm.checkpoints, "explain", explain)
    before = signal.signal(signal.SIGCHLD, as_torch_does)
    try:
        with pytest.raises(SystemExit, match="gone; continue like this"):
            run_here(workspace, f"output_dir={tmp_path}")
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_go_away_are_named(workspace, tmp_path, monkeypatch, workers):
    shutil.copytree(workspace / "rows-64", tmp_path / "rows")
    changes = [f"stage1.train_rows={tmp_path / 'rows'}", f"output_dir={tmp_path / 'run'}"]
    changes.append(f"training.dataloader_num_workers={workers}")
    settings, data = stage_of(workspace, *changes)
    monkeypatch.setattr(TrainingLog, "on_train_begin", lambda *_, **__: None)
    (tmp_path / "rows" / "rows-00000-00000.arrow").unlink()
    with pytest.raises(ValueError) as raised:
        train_mlm.train(settings, data, hub=None, resume=False)
    told = explain(raised.value, settings)
    assert "rows-00000-00000.arrow: can no longer be read" in told
    assert "\n" not in told
    assert told.endswith("--resume goes on from the start.")


def test_rows_on_the_hub_train_like_rows_on_disk(workspace, run_dir, tmp_path):
    """With data workers, which fetch what they read."""
    with HubStandIn() as hub:
        for file in (workspace / "rows-64").glob("[!.]*"):
            hub.files[f"short/{file.name}"] = file.read_bytes()
        output = tmp_path / "streamed"
        subprocess.run(
            command(
                workspace,
                *("--stage", "1", f"output_dir={output}", "training.dataloader_num_workers=2"),
                "stage1.train_rows=hf://datasets/someone/rows/short",
            ),
            check=True,
            env=os.environ
            | {
                "HF_ENDPOINT": hub.endpoint,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(tmp_path / "home"),
            },
        )
    weights = Path("stage1", "final", "model.safetensors")
    assert (output / weights).read_bytes() == (run_dir / weights).read_bytes()


def test_runs_are_drawn_beside_each_other(run_dir, tmp_path):
    """One of them is still being written."""
    other = tmp_path / "under-way" / "stage1"
    other.mkdir(parents=True)
    lines = (run_dir / "stage1" / "log.jsonl").read_text(encoding="utf-8")
    (other / "log.jsonl").write_text(lines[: len(lines) // 2], encoding="utf-8")
    plot_runs([run_dir], tmp_path / "one.png")
    plot_runs([run_dir, other.parent], tmp_path / "both.png")
    one, both = ((tmp_path / name).read_bytes() for name in ("one.png", "both.png"))
    assert one.startswith(b"\x89PNG")
    assert one != both


def test_a_run_without_held_out_rows_is_drawn_without_their_panels(run_dir, tmp_path):
    blind = tmp_path / "blind" / "stage1"
    blind.mkdir(parents=True)
    lines = (run_dir / "stage1" / "log.jsonl").read_text(encoding="utf-8").splitlines(True)
    (blind / "log.jsonl").write_text("".join(line for line in lines if "eval_" not in line))
    plot_runs([run_dir], tmp_path / "seeing.png")
    plot_runs([blind.parent], tmp_path / "blind.png")
    heights = [len(imread(tmp_path / f"{name}.png")) for name in ("seeing", "blind")]
    assert heights == [1800, 1350]


def test_a_run_that_has_not_begun_is_not_drawn(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no log\.jsonl yet"):
        plot_runs([tmp_path], tmp_path / "run.png")


def test_checkpoints_are_pushed_and_open_from_the_hub(workspace, tmp_path):
    with HubStandIn() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_standin",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        arguments = [
            "--stage",
            "1",
            f"output_dir={tmp_path / 'run'}",
            "--push_to_hub",
            "someone/it",
        ]
        steps = ["stage1.training.max_steps=12", "stage1.training.save_steps=6"]
        subprocess.run(command(workspace, *arguments, *steps), check=True, env=environment)
        messages = [message for message, _ in hub.commits]
        assert messages == ["stage 1, step 6", "stage 1, step 12", "stage 1, finished"]
        for _, files in hub.commits:
            assert {"model.safetensors", "modeling_chinese_modernbert.py", "tokenizer.json"} <= set(
                files
            )
            assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
        code = (
            "from transformers import pipeline\n"
            "fill = pipeline('fill-mask', model='someone/it', trust_remote_code=True)\n"
            "print(len(fill('今天的天气[MASK]好。')))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert result.stdout.split() == ["5"], result.stderr
