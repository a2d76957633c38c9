"""The comparison of kept scores: means over seeds, and a margin beside the spread of the seeds."""

import dataclasses
import math

import pytest

from commands import run_main
from experiments.twin import compare
from experiments.twin.compare import table, verdict
from experiments.twin.score import Scores
from pretraining.files import write_json


def scores_of(bits, right=(2, 1)) -> Scores:
    """Of two documents with 6 and 2 masked characters."""
    return Scores("hash", ["news", "diary"], [6, 2], list(bits), list(right), [0, 0])


def test_the_table_has_means_over_seeds_for_each_domain():
    sides = {
        "ours": [scores_of([12, 4]), scores_of([18, 2], right=(4, 0))],
        "twin": [scores_of([30, 10])],
    }
    lines = table(sides).splitlines()
    assert lines[2] == "| all | 8 | 0.00% | 0.00% | 43.8% | 37.5% | 2.250 | 5.000 |"
    assert lines[3] == "| diary | 2 | 0.00% | 0.00% | 25.0% | 50.0% | 1.500 | 5.000 |"
    assert lines[4] == "| news | 6 | 0.00% | 0.00% | 50.0% | 33.3% | 2.500 | 5.000 |"


def test_the_margin_counts_only_beyond_the_spread_of_the_seeds():
    ours = [scores_of([12, 4]), scores_of([10, 2])]  # 2.0 and 1.5 bits a character
    near = [scores_of([12, 4]), scores_of([13, 5])]  # 2.0 and 2.25
    far = [scores_of([24, 8])] * 2  # 4.0
    text = verdict(ours, near)
    assert "ours 2.000, 1.500; twin 2.000, 2.250" in text
    assert "ahead by 0.375" in text
    assert "the margin is not larger than the spread of the seeds, 0.500" in text
    assert "the margin is larger than" in verdict(ours, far)
    assert "no verdict, which needs two seeds a side" in verdict(ours[:1], far)


def test_the_error_is_over_documents():
    # Ahead by 4 bits in each document, 1 a character in all: residuals of 4 - 6 and 4 - 2.
    text = verdict([scores_of([12, 4])] * 2, [scores_of([16, 8])] * 2)
    assert f"ahead by 1.000 ± {math.sqrt(8) / 8:.3f}" in text


def test_the_command_compares_files(tmp_path, capsys):
    files = [tmp_path / "ours.json", tmp_path / "twin.json"]
    for file, bits in zip(files, ([12, 4], [24, 8]), strict=True):
        write_json(file, dataclasses.asdict(scores_of(bits)))
    ours, twin = files
    run_main(compare, "--ours", ours, ours, "--twin", twin, twin)
    printed = capsys.readouterr().out
    assert "| all | 8 |" in printed and "the spread of the seeds, 0.000" in printed


def test_unlike_text_and_other_files_are_refused(tmp_path):
    ours, twin = tmp_path / "ours.json", tmp_path / "twin.json"
    write_json(ours, dataclasses.asdict(scores_of([12, 4])))
    write_json(twin, dataclasses.asdict(scores_of([12, 4])) | {"text": "other"})
    with pytest.raises(SystemExit, match=r"twin\.json: other text or other masks than in"):
        run_main(compare, "--ours", ours, "--twin", twin)
    write_json(twin, {"bits": []})
    with pytest.raises(SystemExit, match=r"twin\.json: holds no scores; make it with"):
        run_main(compare, "--ours", ours, "--twin", twin)
