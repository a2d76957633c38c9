"""A folder that a command makes: complete, or not there."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_output(output: Path) -> None:
    """Refuses an output folder that holds something.

    Raises:
        ValueError: if it does, or is a file.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder. Name another, or empty it.")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `output` if the block ends without an error.

    Raises:
        OSError: if it cannot be made.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it for its owner alone
        os.replace(temporary, output)  # an empty folder there gives way
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
