"""Shows the rows of a step with the masks that the model saw, or would see."""

from pretraining.data.display import show_as_masked, shows_color
from pretraining.run.configuration import RunConfigError
from pretraining.run.settings import StageSettings
from pretraining.run.stage_data import StageData


def show_step(settings: StageSettings, data: StageData, step: int) -> None:
    """Prints the rows of a step.

    Raises:
        RunConfigError: if the stage has no such step.
    """
    if not 0 <= step < settings.steps:
        raise RunConfigError(
            f"--replay {step}: stage {settings.number} has the steps 0 to {settings.steps - 1}."
        )
    color = shows_color()
    tokenizer = settings.tokenizer.backend_tokenizer
    rate = settings.mask_rate(step)
    print(f"stage {settings.number}, step {step}: mask rate {rate:.2%}")
    for position in data.order.positions(step):
        row = data.order.row_index(position)
        if row is None:  # left empty while the batch warms up
            continue
        print(f"\nposition {position}:")
        feature = {"row": data.rows[row], "position": position, "step": step}
        print(show_as_masked(data.rows, row, feature, tokenizer, data.collator, True, color))
