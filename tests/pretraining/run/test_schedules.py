"""The schedules follow the paper's formulas at every step."""

import math

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from pretraining.run.schedules import DampedCosine, WarmupStableDecay, mask_rate
from pretraining.run.trainer import Schedule, StepsAsSet


def test_the_mask_rate_climbs_in_the_warmup_and_falls_to_its_minimum():
    rates = [mask_rate(step, total_steps=100, warmup_steps=20) for step in range(101)]
    assert rates[0] == 0.15
    assert rates[10] == pytest.approx(0.15 + 0.15 * 10 / 20)
    assert rates[20] == 0.30
    assert rates[60] == pytest.approx(0.30 - 0.15 * 40 / 80)
    assert rates[100] == pytest.approx(0.15)
    assert max(rates) == 0.30


def test_without_warmup_the_mask_rate_starts_at_its_maximum():
    assert mask_rate(0, total_steps=10, warmup_steps=0) == 0.30


def test_equal_bounds_fix_the_mask_rate():
    rates = {mask_rate(step, 10, warmup_steps=0, minimum=0.2, maximum=0.2) for step in range(11)}
    assert rates == {0.2}


def test_without_warmup_the_mask_rate_falls_in_a_line():
    rates = [mask_rate(step, total_steps=10, warmup_steps=0) for step in range(11)]
    assert rates == pytest.approx([0.30 - 0.015 * step for step in range(11)])


def test_the_learning_rate_is_the_damped_cosine_at_every_step():
    schedule = DampedCosine(peak=1e-3, minimum=1e-5, total_steps=200, cycles=3, damping=2.0)
    for step in range(200):
        p = step / 200
        upper, lower = 1e-5 + (1e-3 - 1e-5) * (1 - p) ** 2, 1e-5
        wave = math.cos(math.pi * 5 * p)
        assert schedule(step) == pytest.approx((upper + lower) / 2 + (upper - lower) / 2 * wave)


def test_the_learning_rate_starts_on_the_peak_and_ends_in_the_valley():
    schedule = DampedCosine(peak=1e-3, minimum=1e-5, total_steps=200)
    assert schedule(0) == pytest.approx(1e-3)
    assert schedule(200) == pytest.approx(1e-5)


def test_the_warmup_is_a_linear_ramp_that_meets_the_curve():
    warmed = DampedCosine(peak=1e-3, minimum=1e-5, total_steps=200, warmup_steps=10)
    plain = DampedCosine(peak=1e-3, minimum=1e-5, total_steps=200)
    assert warmed(0) == 0
    assert warmed(5) == pytest.approx(plain(5) / 2)
    assert [warmed(step) for step in range(10, 200)] == [plain(step) for step in range(10, 200)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": 100}, "warmup_steps 100 must lie between"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"minimum": 2e-3}, "minimum 0.002 and peak 0.001"),
        ({"peak": 0.0, "minimum": 0.0}, "0 < peak"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"damping": -1.0}, "damping must not be negative"),
    ],
)
def test_contradictory_learning_rates_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DampedCosine(**{"peak": 1e-3, "minimum": 1e-5, "total_steps": 100, **values})


@pytest.mark.parametrize(("decay", "halfway"), [("linear", 0.5), ("sqrt", 0.5**0.5)])
def test_a_wsd_warms_up_stays_and_falls_in_its_last_share(decay, halfway):
    schedule = WarmupStableDecay(
        peak=1e-3, minimum=1e-5, total_steps=100, warmup_steps=10, decay_share=0.2, decay=decay
    )
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([0, 5e-4, 1e-3])
    assert {schedule(step) for step in range(10, 81)} == {1e-3}
    assert schedule(90) == pytest.approx(1e-3 - (1e-3 - 1e-5) * halfway)
    falling = [schedule(step) for step in range(80, 101)]
    assert falling == sorted(falling, reverse=True)
    assert schedule(100) == schedule(101) == pytest.approx(1e-5)


def test_a_wsd_can_stay_at_its_peak_to_the_end():
    schedule = WarmupStableDecay(peak=1e-3, minimum=1e-5, total_steps=100, decay_share=0.0)
    assert {schedule(step) for step in range(101)} == {1e-3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": 100}, "warmup_steps 100 must lie between"),
        ({"minimum": 2e-3}, "minimum 0.002 and peak 0.001"),
        ({"decay_share": 1.2}, "decay_share must lie between 0 and 1"),
    ],
)
def test_a_contradictory_wsd_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        WarmupStableDecay(**{"peak": 1e-3, "minimum": 1e-5, "total_steps": 100, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minimum": 0.4}, "minimum <= maximum"),
        ({"maximum": 1.0}, "maximum < 1"),
        ({"minimum": 0.0}, "0 < minimum"),
        ({"warmup_steps": 10}, "warmup_steps 10 must lie between"),
    ],
)
def test_contradictory_mask_rates_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        mask_rate(0, **{"total_steps": 10, "warmup_steps": 1, **values})


def test_a_resumed_run_has_the_constants_that_its_run_file_has_now():
    def begin(**constants):
        optimizer = torch.optim.AdamW([torch.zeros(1)], lr=0.1, **constants)
        return optimizer, Schedule(optimizer, lambda step: 1.0)

    before, schedule = begin(weight_decay=0.0, betas=(0.9, 0.999))
    resumed, again = begin(weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    resumed.load_state_dict(before.state_dict())
    again.load_state_dict(schedule.state_dict())
    (group,) = resumed.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.1, (0.9, 0.98), 1e-6)


def test_a_resumed_run_saves_as_often_as_its_run_file_says_now(tmp_path):
    state = TrainerState(max_steps=100, save_steps=50, logging_steps=10)
    arguments = TrainingArguments(tmp_path, save_steps=0.05, logging_steps=2)
    StepsAsSet().on_train_begin(arguments, state, TrainerControl())
    assert (state.save_steps, state.logging_steps) == (5, 2)


def test_a_resumed_run_has_the_peaks_that_its_run_file_has_now():
    def begin(*peaks: float):
        groups = [{"params": [torch.zeros(1)], "lr": peak} for peak in peaks]
        optimizer = torch.optim.AdamW(groups)
        return optimizer, Schedule(optimizer, lambda step: 1 / (1 + step))

    optimizer, schedule = begin(0.3, 0.7)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    for peaks, expected in (((0.3, 0.7), rates), ((0.3, 0.07), [rates[0], 0.07 * (1 / 4)])):
        resumed, again = begin(*peaks)
        resumed.load_state_dict(optimizer.state_dict())
        again.load_state_dict(schedule.state_dict())
        assert [group["lr"] for group in resumed.param_groups] == expected
        again.step()
        assert resumed.param_groups[1]["lr"] == peaks[1] * (1 / 5)
