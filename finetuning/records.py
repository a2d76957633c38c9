"""Checks that the readers of tasks share."""

from pretraining.files import half_character


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
    if half := half_character(text):
        raise ValueError(
            f"{what} has half of a character, {half!a}, an unpaired surrogate; correct or remove "
            "the record."
        )
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
