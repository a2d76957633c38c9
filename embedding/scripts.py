"""Simplified and traditional characters, by OpenCC."""

import functools
from collections.abc import Callable

from embedding.lexical import need_packages


def to_traditional(text: str) -> str:
    """Traditional characters and the words of Taiwan.

    Raises:
        ImportError: if opencc is not installed.
    """
    return _converter("s2twp")(text)


def to_simplified(text: str) -> str:
    """Simplified characters; the words stay.

    Raises:
        ImportError: if opencc is not installed.
    """
    return _converter("t2s")(text)


@functools.cache
def _converter(name: str) -> Callable[[str], str]:
    need_packages("opencc")
    import opencc

    return opencc.OpenCC(name).convert
