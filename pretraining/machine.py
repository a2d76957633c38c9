"""What machine this is."""

import platform
import sys
from datetime import date
from pathlib import Path

import torch
import transformers


def processor() -> str:
    """The processor's name, as its maker writes it where the system says so."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had, of the GPU's memory or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # there is none on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: torch.device) -> dict[str, str]:
    """Date, hardware and versions that figures were measured with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "date": date.today().isoformat(),
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
