"""Commands tell their user's mistakes in one line, and keep the traceback of ours."""

import io
import sys

import pytest

from pretraining.command import readable_errors


@pytest.mark.parametrize(
    "error", [ImportError("not installed: x"), FileNotFoundError("no x"), ValueError("x is 3")]
)
def test_what_a_user_can_put_right_is_one_line(error):
    with pytest.raises(SystemExit) as ended, readable_errors("prepare"):
        raise error
    assert ended.value.code == f"prepare: {error}"


def test_our_own_errors_keep_their_traceback():
    with pytest.raises(KeyError), readable_errors("prepare"):
        raise KeyError("x")


def test_a_terminal_without_a_character_shows_its_code(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="gbk", newline="")
    monkeypatch.setattr(sys, "stdout", terminal)
    with readable_errors("search"):
        print("好😀", flush=True)
    assert terminal.buffer.getvalue().decode("gbk") == "好\\U0001f600\n"
