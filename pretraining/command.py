"""How commands end when something is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def readable_errors(command: str) -> Iterator[None]:
    """Ends the process with "command: message" where its user can put things right.

    A missing package, a file that cannot be read or a wrong value needs one line. Any other error
    is ours, and keeps its traceback.
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{command}: {error}")
