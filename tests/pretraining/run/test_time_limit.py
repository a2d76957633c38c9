"""Commands that may take only so long."""

import sys
import time

import psutil

from pretraining.run.time_limit import run_at_most

STARTS_ANOTHER = """
import subprocess, time
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""


def test_the_exit_status_comes_back():
    assert run_at_most(60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_what_a_command_has_started_ends_with_it(tmp_path):
    with open(tmp_path / "log", "w") as log:
        assert run_at_most(3, [sys.executable, "-c", STARTS_ANOTHER], stdout=log) is None

    def has_ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    started = int((tmp_path / "log").read_text())
    deadline = time.perf_counter() + 10
    while not has_ended(started) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert has_ended(started)
