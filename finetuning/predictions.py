"""The predictions of a run, in a file beside its result.

They hold text of the data set, which a result must not carry where it is published.
"""

from pathlib import Path

from pretraining.files import read_json_lines, write_json_lines


def predictions_file(result_file: Path) -> Path:
    """Where the predictions of a result are."""
    return result_file.with_suffix(".predictions.jsonl")


def write_predictions(result_file: Path, predictions: dict[str, list]) -> None:
    """Writes the predictions of a run, a line each.

    Args:
        result_file: the file of its result.
        predictions: for each split [id, answer] of each example.
    """
    lines = (
        {"split": split, "id": number, "answer": answer}
        for split, answers in predictions.items()
        for number, answer in answers
    )
    write_json_lines(predictions_file(result_file), lines)


def read_predictions(result_file: Path) -> dict[str, list]:
    """The predictions of a run as `write_predictions` took them; none if they were not kept.

    Raises:
        OSError, ValueError: if the file cannot be read; the message names it.
    """
    file, predictions = predictions_file(result_file), {}
    for _, line in read_json_lines(file) if file.exists() else ():
        predictions.setdefault(line["split"], []).append([line["id"], line["answer"]])
    return predictions
