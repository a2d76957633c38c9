"""How commands end when something is wrong."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def readable_errors(command: str) -> Iterator[None]:
    """Ends the process with "command: message" where its user can put things right.

    A missing package, a file that cannot be read or a wrong value needs one line. Any other error
    is ours, and keeps its traceback. A character that the terminal cannot show is shown as a code
    and ends nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there may be none, or one of a notebook
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{command}: {error}")
