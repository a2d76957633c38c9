"""What a run shows: one line a report, under one heading."""

import pytest

from pretraining.run.progress import duration, heading, report

TRAINING = {
    "step": 1_200,
    "loss": 4.5678,
    "bits_per_character": 4.91,
    "learning_rate": 2.5e-3,
    "mask_rate": 0.225,
    "tokens_per_second": 5_432.1,
    "grad_norm": 1.0,
    "left": "1 h 2 min",
}
EVALUATION = {
    "step": 1_200,
    "eval_loss": 3.21,
    "eval_bits_per_character": 4.59,
    "eval_masked_accuracy": 0.314,
    "eval_masked_accuracy/law (hans)": 0.4,
}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3_599.9, "1 h 0 min"),
        (7_500, "2 h 5 min"),
        (86_400 * 31 + 3_600 * 4, "31 d 4 h"),
        (86_400 * 1_000, "1,000 d 0 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds, shown):
    assert duration(seconds) == shown


def test_a_training_log_is_one_line_under_the_heading():
    assert heading().split() == [
        *("step", "loss", "bits/char", "accuracy", "learning", "rate", "mask", "rate"),
        *("tokens/s", "left"),
    ]
    line = report(TRAINING)
    assert line.split() == [
        "1,200",
        "4.568",
        "4.91",
        "2.50e-03",
        "22.5%",
        "5,432",
        "1",
        "h",
        "2",
        "min",
    ]
    for title, cell in (("loss", "4.568"), ("mask rate", "22.5%"), ("tokens/s", "5,432")):
        assert line.index(cell) + len(cell) == heading().index(title) + len(title)


def test_an_evaluation_is_one_line_with_its_accuracy_and_named():
    line = report(EVALUATION)
    assert line.split() == ["1,200", "3.210", "4.59", "31.4%", "held", "out"]
    assert line.index("31.4%") + 5 == heading().index("accuracy") + len("accuracy")
