"""Checks that the readers of tasks share."""


def filled(text, what: str) -> str:
    """The text of a record.

    Args:
        what: its file, place and key, for the message.

    Raises:
        ValueError: if it is empty or not a text.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{what} must be a text that is not empty, got {text!r}; "
            "fill it in or remove the record."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has half of a character, {text[error.start]!a}, an unpaired surrogate; "
            "correct or remove the record."
        ) from error
    return text


def not_empty(examples: list[dict], *sources) -> list[dict]:
    """The examples of files.

    Raises:
        ValueError: if there are none.
    """
    if not examples:
        names = ", ".join(map(str, sources))
        raise ValueError(f"{names}: holds no examples; check that it is complete.")
    return examples
