"""What machine this is."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, as its maker writes it where the system says so."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
