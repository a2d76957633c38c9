"""The plan of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import open_rows
from pretraining.machine import peak_memory
from pretraining.run import plan
from pretraining.run.flops import training_flops
from pretraining.run.plan import draw_schedules, memory_of, operations
from pretraining.run.trainer import make_model
from row_sets import write_rows
from runs import stage_of


def test_schedules_are_drawn_one_stage_after_another(tmp_path, monkeypatch):
    stage = SimpleNamespace(steps=5_000, learning_rate=lambda s: 1e-3, mask_rate=lambda s: 0.2)
    save, drawn = plan.save_picture, []
    monkeypatch.setattr(
        plan, "save_picture", lambda figure, file: drawn.append(figure) or save(figure, file)
    )
    draw_schedules([stage, stage], tmp_path / "new" / "plan.png")
    for axis in drawn[0].axes:
        first, second = (line.get_xdata() for line in axis.lines)
        assert first[0] == 0 and first[-1] < second[0] == 5_000
    assert (tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_operations_count_real_tokens_and_masked_ones(tmp_path):
    """Rows of two documents of 20 tokens and 24 of padding."""
    row = np.array(([2] + [9] * 18 + [3]) * 2 + [0] * 24, dtype=np.uint16)
    ids = {"cls_id": 2, "sep_id": 3, "pad_id": 0, "mask_id": 4}
    facts = {"special_token_ids": ids, "padding_share": 24 / 64}
    write_rows(tmp_path, iter([row] * 6), 64, facts)
    order = TrainingOrder(open_rows(tmp_path), 40, rows_per_step=4, seed=0)
    config = ChineseModernBertConfig(vocab_size=64, hidden_size=32, num_attention_heads=2)
    counted = operations(config, order, steps=10, mask_rate=lambda step: 0.25)
    assert counted == pytest.approx(training_flops(config, [20, 20] * 40, 0.25 * 40 * 40))


def test_a_batch_warmup_is_not_what_is_measured(workspace, monkeypatch):
    seen = []
    monkeypatch.setattr(plan, "make_trainer", lambda settings, data, *others: seen.append(data))
    monkeypatch.setattr(plan, "_measure", lambda trainer: None)
    settings, data = stage_of(
        workspace, "stage1.batch_warmup.rows=2", "stage1.batch_warmup.steps=5"
    )
    assert data.order.drawn_before(1) == 2
    plan.measure(settings, data, None)
    assert seen[0].order.drawn_before(1) == settings.stage.rows_per_step
    assert len(seen[0].order) == len(data.order)


def test_what_is_measured_saves_memory_as_the_run_does(workspace):
    every_second = "training.gradient_checkpointing_kwargs={every_n_layers: 2}"
    settings, data = stage_of(workspace, "training.gradient_checkpointing=true", every_second)
    model = make_model(settings)
    plan.measure(settings, data, model)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False, True]


def test_the_memory_of_this_machine_is_known():
    cpu = torch.device("cpu")
    assert 1 << 26 < peak_memory(cpu) < memory_of(cpu) < 1 << 50
