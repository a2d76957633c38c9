"""The guard stops a run before its weights are ruined, and says where."""

import json
from types import SimpleNamespace

import pytest
import torch

from pretraining.run.guard import STOPPED_FILE, Guard, TrainingStopped


def state(step: int, log=()) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=True, log_history=list(log))


@pytest.fixture
def guard(tmp_path):
    return Guard(tmp_path, positions=lambda step: range(8 * step, 8 * step + 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_not_finite_stop_the_step(guard, tmp_path, bad):
    model = torch.nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    guard.on_pre_optimizer_step(None, state(5), None, model=model)
    model.bias.grad[1] = bad
    with pytest.raises(TrainingStopped, match=r"step 5: the gradients are not finite.*40 to 47"):
        guard.on_pre_optimizer_step(None, state(5), None, model=model)
    stopped = json.loads((tmp_path / STOPPED_FILE).read_text(encoding="utf-8"))
    assert (stopped["step"], stopped["positions"]) == (5, [40, 47])


def test_a_loss_that_doubles_stops_the_run(guard):
    for step, loss in enumerate([10.0, 4.0, 4.2, 3.9, 4.1, 4.0, 7.9], start=1):
        guard.on_log(None, state(step), None, logs={"loss": loss})
    with pytest.raises(TrainingStopped, match=r"step 7: the loss is 8\.400, and was 4\.100 before"):
        guard.on_log(None, state(8), None, logs={"loss": 8.4})


def test_a_loss_that_is_no_number_stops_even_the_first_log(guard):
    with pytest.raises(TrainingStopped, match="the loss is nan"):
        guard.on_log(None, state(1), None, logs={"loss": float("nan")})


def test_other_logs_do_not_count(guard):
    guard.on_log(None, state(1), None, logs={"eval_loss": float("nan")})
    assert not guard.losses


def test_a_resumed_run_remembers_its_losses_and_forgets_its_stop(guard, tmp_path):
    (tmp_path / STOPPED_FILE).write_text("{}", encoding="utf-8")
    guard.on_train_begin(None, state(5, [{"loss": 2.0}] * 5 + [{"eval_loss": 9.0}]), None)
    assert not (tmp_path / STOPPED_FILE).exists()
    with pytest.raises(TrainingStopped):
        guard.on_log(None, state(6), None, logs={"loss": 4.1})
