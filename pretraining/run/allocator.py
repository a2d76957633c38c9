"""How the C library handles the memory of training on a CPU."""

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step instead of returning it to the system.

    Each step frees and asks for the same large tensors. Returned to the system, every page of them
    costs a page fault the next time, about a twentieth of a step. Elsewhere than in glibc this does
    nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)
