"""Commands that may take only so long."""

import os
import signal
import subprocess
from collections.abc import Sequence


def run_at_most(seconds: float, command: Sequence[str], **options) -> int | None:
    """Runs a command. When its time is up, it is killed together with all that it has started.

    Args:
        options: of `subprocess.Popen`.

    Returns:
        The exit status, or None if it was killed.
    """
    # A group of its own, but no session of its own: what ends this session ends the command, too.
    process = subprocess.Popen(command, process_group=0, **options)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
