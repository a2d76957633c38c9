"""What the readers of tasks share."""


def not_empty(examples: list[dict], *sources) -> list[dict]:
    """The examples of files.

    Raises:
        ValueError: if there are none.
    """
    if not examples:
        names = ", ".join(map(str, sources))
        raise ValueError(f"{names}: holds no examples; check that it is complete.")
    return examples
