"""Uploads: what a failing connection costs, and whose repository it is."""

from types import SimpleNamespace

import pytest

import train_mlm
from pretraining.run import hub
from runs import run_here


class NoConnection(Exception):
    """As httpx raises it: no OSError."""


@pytest.fixture
def made(monkeypatch) -> list:
    """What was asked of the Hub: the token, then what `create_repo` was given."""
    asked = []

    class Api:
        def __init__(self, token=None):
            asked.append(token)

        def create_repo(self, repo_id, **options):
            asked.append(options)
            if repo_id == "someone/unreachable":
                raise NoConnection("Connection refused")
            return SimpleNamespace(repo_id=f"someone/{repo_id}")

        def auth_check(self, repo_id, *, write):
            if write and repo_id == "someone/read-only":
                raise NoConnection("403 Forbidden")

        def upload_folder(self, **options):
            raise NoConnection("Connection refused")

    monkeypatch.setattr(hub, "HfApi", Api)
    return asked


def stage(**arguments) -> SimpleNamespace:
    values = {"process_index": 0, "hub_token": None, "hub_private_repo": None} | arguments
    return SimpleNamespace(number=1, arguments=SimpleNamespace(**values))


def test_a_lost_connection_does_not_end_the_run(made, tmp_path, caplog):
    push = hub.open_hub("it", stage())
    push.on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=7), None)
    assert "checkpoint-7 could not be uploaded, the run goes on" in caplog.text
    assert not push.upload(tmp_path, "finished")


def test_a_finished_model_that_was_not_uploaded_is_told_at_the_end(
    workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_mlm, "train", lambda *_: False)
    with pytest.raises(SystemExit, match=r"not uploaded: [^ ]*stage2/final\. The same command"):
        run_here(workspace, f"output_dir={tmp_path}")
    # The second stage's weights are what the repository is to hold.
    monkeypatch.setattr(train_mlm, "train", lambda stage, *_: stage.number == 2)
    run_here(workspace, f"output_dir={tmp_path}")


def test_the_repository_is_as_private_as_the_run_file_says(made):
    hub.open_hub("it", stage(hub_private_repo=True, hub_token="hf_own"))
    assert made == ["hf_own", {"private": True, "exist_ok": True}]


def test_a_hub_that_cannot_be_reached_is_told_at_the_start(made):
    with pytest.raises(OSError, match="--push_to_hub someone/unreachable: Connection refused"):
        hub.open_hub("someone/unreachable", stage())


def test_a_repository_that_may_only_be_read_is_told_at_the_start(made):
    with pytest.raises(OSError, match="--push_to_hub read-only: 403 Forbidden"):
        hub.open_hub("read-only", stage())


def test_other_processes_upload_nothing(made):
    assert hub.open_hub("it", stage(process_index=1)) is None
    assert made == []
