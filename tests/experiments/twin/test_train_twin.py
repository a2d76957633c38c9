"""Training the twin: what it masks, and that an interruption changes nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from data_collator_wwm import split_row
from experiments.twin import train_twin
from experiments.twin.train_twin import MASK_RATE, MaskedPlaces, TwinRun, train
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import open_rows

STEPS = 6


def run_of(workspace: Path, output: Path) -> TwinRun:
    return TwinRun(
        rows=workspace / "rows",
        tokenizer=workspace / "tokenizer",
        like=workspace / "like.json",
        output=output,
        steps=STEPS,
        learning_rate=1e-2,
        rows_per_step=4,
        compiled=False,
    )


def often(arguments):
    """The run's arguments with a log of each step, and a checkpoint of every third."""
    arguments.logging_steps, arguments.save_steps = 1, 3
    return arguments


@pytest.fixture(scope="module")
def trained(made_once, twin_workspace) -> Path:
    """The folder of a run that nobody disturbed. Not to be changed."""

    def make(folder: Path) -> None:
        arguments = train_twin.training_arguments
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_twin, "training_arguments", lambda run: often(arguments(run)))
            train(run_of(twin_workspace, folder / "run"))

    return made_once("twin-run", make) / "run"


def test_words_are_masked_whole_and_listed_for_the_head(twin_workspace):
    rows = open_rows(twin_workspace / "rows")
    order = TrainingOrder(rows, total_positions=8, rows_per_step=4, seed=3)
    features = [order[position] for position in range(8)]
    batch = MaskedPlaces(rows, seed=3)(features)
    ids, starts = split_row(np.stack([feature["row"] for feature in features]))
    ids, words = ids.ravel(), starts.cumsum()

    real = batch["labels"] != -100
    masked = batch["masked"][real].numpy()
    assert (batch["labels"][real].numpy() == ids[masked]).all()
    maskable = ids >= rows.manifest["first_ordinary_id"] - 4  # [UNK] is text, too
    special = [*rows.manifest["special_token_ids"].values()]
    maskable &= ~np.isin(ids, special)
    by_row = [round(MASK_RATE * count) for count in maskable.reshape(8, -1).sum(1)]
    assert len(masked) == sum(by_row)
    assert set(words[masked]).isdisjoint(words[np.setdiff1d(np.flatnonzero(maskable), masked)])
    shown = batch["input_ids"].flatten().numpy()
    assert set(np.flatnonzero(shown != ids)) <= set(masked)


def test_it_learns_and_says_so_as_our_runs_do(trained):
    lines = (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()
    logs = [entry for entry in map(json.loads, lines) if "loss" in entry]
    assert [entry["step"] for entry in logs] == list(range(1, STEPS + 1))
    assert logs[-1]["loss"] < logs[0]["loss"]
    manifest = open_rows(trained.parents[1] / "twin" / "rows").manifest
    characters = manifest["characters"] / manifest["tokens"]
    bits = logs[0]["loss"] / np.log(2) / characters
    assert logs[0]["bits_per_character"] == pytest.approx(bits, abs=1e-3)
    assert all(entry["tokens_per_second"] > 0 for entry in logs)
    # Up for a tenth of the steps, then down to zero in a straight line.
    rates = [entry["learning_rate"] for entry in logs]
    assert max(rates) == rates[1] == pytest.approx(1e-2)
    assert np.diff(rates[1:]) == pytest.approx(-1e-2 / (STEPS - 1))


def test_the_finished_model_is_a_bert_with_its_tokenizer(trained):
    final = trained / "final"
    model = AutoModelForMaskedLM.from_pretrained(final)
    assert type(model) is BertForMaskedLM
    assert (final / "tokenizer.json").exists() and not (final / "training_args.bin").exists()
    saved = load_file(final / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[name], saved[name])


def test_a_run_that_is_resumed_ends_with_the_same_weights(trained, twin_workspace, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    train(run_of(twin_workspace, folder), resume=True)
    ended, undisturbed = (
        load_file(each / "final" / "model.safetensors") for each in (folder, trained)
    )
    assert ended.keys() == undisturbed.keys()
    assert all(torch.equal(ended[name], undisturbed[name]) for name in ended)


def test_a_folder_in_use_is_left_alone(trained, twin_workspace):
    run = run_of(twin_workspace, trained)
    with pytest.raises(ValueError, match=r"holds a run; add --resume or choose another --output"):
        train(run)
    other = dataclasses.replace(run, learning_rate=1e-3, seed=9)
    with pytest.raises(ValueError, match="was begun with other learning_rate, seed"):
        train(other, resume=True)


def test_settings_that_cannot_work_are_named(twin_workspace, tmp_path):
    run = run_of(twin_workspace, tmp_path / "run")
    with pytest.raises(ValueError, match="--steps 0: give a number above 0"):
        dataclasses.replace(run, steps=0)
    (tmp_path / "other").mkdir()
    root = Path(__file__).parents[3]
    shutil.copy(root / "tokenizer.json", tmp_path / "other" / "tokenizer.json")
    with pytest.raises(ValueError, match="rows were made with another tokenizer"):
        train(dataclasses.replace(run, tokenizer=tmp_path / "other"))
    assert not run.output.exists()
