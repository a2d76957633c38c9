"""Pairs that a CrossEncoder scores, as rows to train vectors on."""

import sys

import numpy as np
import pytest

from embedding import distill, judge
from embedding.data import load_task
from embedding.run_file import TaskSpec
from embedding.teacher import TeacherNote, digest_of, open_vectors

TEXTS = [f"第{number}站到了，请下车。" for number in range(50)]


class _Judge:
    """Scores the first text's length over that of both."""

    def predict(self, pairs, show_progress_bar):
        return np.array([len(left) / (len(left) + len(right)) for left, right in pairs])


@pytest.fixture
def texts(tmp_path):
    """A teacher's folder."""
    folder = tmp_path / "teacher"
    note = TeacherNote("t", "f", None, digest_of(TEXTS), len(TEXTS), 2, len(TEXTS))
    distill.start_or_resume(folder, note, TEXTS)
    angles = np.linspace(0, np.pi / 2, len(TEXTS))
    open_vectors(folder, note, "r+")[:] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return folder


def test_a_score_is_the_mean_over_both_orders():
    assert judge.judged(_Judge(), [("长的一句", "短"), ("短", "短")]).tolist() == [0.5, 0.5]


def test_the_command_writes_rows_that_are_trained_on(texts, tmp_path, monkeypatch):
    class Opening:
        of = classmethod(lambda cls, name: cls())
        open = staticmethod(lambda architecture: _Judge())

    monkeypatch.setattr(judge, "Opening", Opening)
    output = tmp_path / "judged.jsonl"
    command = ["judge", "--texts", texts, "--judge", "j", "--count", 20, "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    judge.main()
    columns = ("sentence1", "sentence2", "score")
    rows = load_task(TaskSpec("j", "scored", (output,), columns=columns), seed=0).rows
    assert len(rows) == 20 and set(rows["score"]) == {0.5}
    assert set(rows["sentence1"]) <= set(TEXTS)


def test_a_folder_without_a_teachers_vectors_is_named(tmp_path, monkeypatch):
    command = ["judge", "--texts", tmp_path, "--judge", "j", "--output", tmp_path / "o.jsonl"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit, match=str(tmp_path)):
        judge.main()
