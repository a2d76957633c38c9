"""Commands in this process, which saves the time to import everything."""

import sys
from types import ModuleType

import pytest


def run_main(module: ModuleType, *arguments: object) -> None:
    """Runs a command as its arguments would, had they been typed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
