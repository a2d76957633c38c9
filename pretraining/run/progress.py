"""What a run shows on the terminal: one bar, and one line a report."""

import time

from tqdm import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

# Heading, width, key in a training log, key in an evaluation, format.
COLUMNS = (
    ("step", 8, "step", "step", "{:,}"),
    ("loss", 8, "loss", "eval_loss", "{:.3f}"),
    ("bits/char", 9, "bits_per_character", "eval_bits_per_character", "{:.2f}"),
    ("accuracy", 8, None, "eval_masked_accuracy", "{:.1%}"),
    ("learning rate", 13, "learning_rate", None, "{:.2e}"),
    ("mask rate", 9, "mask_rate", None, "{:.1%}"),
    ("tokens/s", 9, "tokens_per_second", None, "{:,.0f}"),
    ("left", 12, "left", "left", "{}"),
)


def duration(seconds: float) -> str:
    """Two units that a person would use: "3 d 4 h", "2 h 5 min", "45 s"."""
    seconds = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:,} {unit} {seconds % size // smaller} {name}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def heading() -> str:
    """The line above the reports."""
    return "  ".join(title.rjust(width) for title, width, *_ in COLUMNS)


def report(entry: dict) -> str:
    """A training log or an evaluation as one line under `heading`.

    Args:
        entry: of Trainer's log history, and "left", the time that the stage will still take.
    """
    key = 1 if "eval_loss" in entry else 0
    cells = []
    for _, width, *keys, form in COLUMNS:
        value = entry.get(keys[key])
        cells.append(("" if value is None else form.format(value)).rjust(width))
    return "  ".join(cells).rstrip() + ("  held out" if key else "")


class ProgressReport(TrainerCallback):
    """Shows a bar over the steps, and each log and evaluation as a line of a table.

    Takes the place of Trainer's own callback, which prints dictionaries. Only the first process
    shows anything. The bar is left out where there is no terminal or `disable_tqdm` is set.
    """

    def __init__(self):
        self.bar = None

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """Puts it in the place of Trainer's own."""
        for other in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(other)
        trainer.add_callback(cls())

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, self.first = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit=" steps",
                dynamic_ncols=True,
                leave=False,
                disable=args.disable_tqdm or None,
            )
            tqdm.write(heading())

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.set_description("held-out rows")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & set(logs):
            return
        if self.bar is not None:
            self.bar.set_description()
        entry = {**state.log_history[-1]}
        if done := state.global_step - self.first:
            pace = (time.perf_counter() - self.begun) / done
            entry["left"] = duration(pace * (state.max_steps - state.global_step))
        tqdm.write(report(entry))

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
