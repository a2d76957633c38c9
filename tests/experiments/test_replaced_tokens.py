"""Replaced-token detection: what is drawn, what is lost, and runs that go on."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from commands import run_main
from data_collator_wwm import IGNORED
from experiments.learning_per_hour import train_replaced_tokens
from experiments.learning_per_hour.replaced_tokens import (
    CollatorWithDraws,
    ReplacedTokenDetection,
    draw_tokens,
    generator_config,
)
from modeling_chinese_modernbert import ChineseModernBertForSequenceClassification
from pretraining.files import read_json
from runs import stage_of


@pytest.fixture
def detection(tiny_config) -> ReplacedTokenDetection:
    torch.manual_seed(0)
    return ReplacedTokenDetection(tiny_config(vocab_size=32_000)).train()


@pytest.fixture(scope="module")
def collated(workspace):
    """Collates the rows at some positions of a run's order."""
    _, data = stage_of(workspace)
    collator = CollatorWithDraws(data.collator)
    return lambda *positions: collator([data.order[each] for each in positions])


def test_the_generator_is_a_quarter_as_wide_and_shares_the_embeddings(detection, tiny_config):
    shape = generator_config(tiny_config(hidden_size=64, num_attention_heads=4, embedding_size=24))
    assert (shape.hidden_size, shape.intermediate_size, shape.num_attention_heads) == (16, 12, 1)
    assert (shape.embedding_size, shape.num_hidden_layers) == (24, 3)
    table = detection.detector.get_input_embeddings().weight
    assert detection.generator.get_input_embeddings().weight is table
    assert detection.generator.decoder.weight is table


def test_draws_follow_from_seed_and_position_alone(collated):
    together, alone = collated(3, 4), collated(4)
    assert torch.equal(together["draws"][1:], alone["draws"])
    assert not torch.equal(together["draws"][0], together["draws"][1])
    assert together["draws"].min() >= 0 and together["draws"].max() < 1


def test_each_token_is_drawn_as_often_as_its_probability_says():
    decoder = torch.nn.Linear(2, 3, bias=False)
    x = torch.tensor([[0.5, -1.0]])
    wanted = decoder(x).softmax(-1)[0]
    draws = (torch.arange(1000) + 0.5) / 1000  # one in the middle of each thousandth
    drawn = draw_tokens(decoder, x.expand(1000, 2), draws)
    shares = drawn.bincount(minlength=3) / 1000
    assert (shares - wanted).abs().max() <= 1e-3
    assert draw_tokens(decoder, x[:0], draws[:0]).tolist() == []


def test_the_loss_is_the_generators_and_fifty_times_the_detectors(detection, collated):
    always = 777
    detection.generator.decoder.bias.data[always] = 100.0  # so this is what it draws
    batch = collated(0, 1)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    masked = batch["labels"] != IGNORED
    row, place = masked.nonzero()[0]
    batch["labels"][row, place] = always  # where it is drawn right
    logits = detection.detector(**given | {"input_ids": given["input_ids"].where(~masked, always)})
    replaced = (masked & (batch["labels"] != always)).float()
    assert replaced.sum() == masked.sum() - 1
    real = batch["attention_mask"].bool()
    found = F.binary_cross_entropy_with_logits(logits.logits.squeeze(-1)[real], replaced[real])
    generated = detection.generator(**given, labels=batch["labels"]).loss
    loss = detection(**batch).loss
    assert loss.item() == pytest.approx((generated + 50 * found).item(), rel=1e-4)
    assert detection.losses.tolist() == pytest.approx([generated.item(), found.item(), 1], rel=1e-4)


def test_the_detector_teaches_the_generator_only_through_the_embeddings(detection, collated):
    batch = collated(0)
    detection(**batch).loss.backward()
    assert detection.detector.get_input_embeddings().weight.grad.any()
    ours = {name: each.grad.clone() for name, each in detection.generator.named_parameters()}
    detection.zero_grad()
    given = {name: each for name, each in batch.items() if name != "draws"}
    detection.generator(**given).loss.backward()
    for name, each in detection.generator.named_parameters():
        same = torch.allclose(ours[name], each.grad, rtol=1e-4, atol=1e-7)
        assert same != ("tok_embeddings" in name)


def run(workspace, folder, *arguments: str) -> dict[str, torch.Tensor]:
    """Trains six steps, or goes on; the weights of the finished detector."""
    changes = ["stage1.eval_rows=null", "stage1.training.max_steps=6", f"output_dir={folder}"]
    changes += ["stage1.training.save_steps=3", "training.report_to=none"]
    run_main(train_replaced_tokens, workspace / "run.yaml", *changes, *arguments)
    return load_file(folder / "stage1" / "final" / "model.safetensors")


def test_a_run_that_is_resumed_ends_as_if_it_had_not_stopped(workspace, tmp_path, capsys):
    weights = run(workspace, tmp_path)
    stage = tmp_path / "stage1"
    final = stage / "final"
    losses = [each for each in read_json(final / "training_log.json") if "loss" in each]
    assert [each["step"] for each in losses] == [1, 2, 3, 4, 5, 6]
    for each in losses:
        total = each["generator_loss"] + 50 * each["detector_loss"]
        assert total == pytest.approx(each["loss"], abs=1e-2)
        assert "bits_per_character" not in each
    tuned = ChineseModernBertForSequenceClassification.from_pretrained(
        final, num_labels=3, ignore_mismatched_sizes=True
    )
    for name in ("model.layers.0.mlp.Wi.weight", "head.dense.weight"):
        assert torch.equal(tuned.state_dict()[name], weights[name])

    for done in ("final", "checkpoint-6"):
        (stage / done).rename(tmp_path / f"first-{done}")
    again = run(workspace, tmp_path, "--resume")
    assert "checkpoint-3" in capsys.readouterr().out
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_run_that_evaluates_is_refused(workspace, tmp_path):
    with pytest.raises(SystemExit, match="eval_rows out"):
        run_main(train_replaced_tokens, workspace / "run.yaml", f"output_dir={tmp_path}")
