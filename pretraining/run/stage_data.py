"""The rows of a stage: opened, checked against its settings, and put in training order."""

from dataclasses import dataclass
from pathlib import Path

from data_collator_wwm import DataCollatorForWholeWordMasking
from pretraining.data.encoding import check_tokenizer
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import Rows, open_rows
from pretraining.run.configuration import Masking, RunConfigError
from pretraining.run.settings import StageSettings


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is evaluated on. Make it with `open_data`.

    Attributes:
        rows: for training.
        eval_rows: held out, or None.
        order: the training order over `rows`.
        collator: masks rows at the rate of their step.
    """

    rows: Rows
    eval_rows: Rows | None
    order: TrainingOrder
    collator: DataCollatorForWholeWordMasking


def open_data(settings: StageSettings, verify: bool = True) -> StageData:
    """Opens the rows of a stage.

    Args:
        verify: read all their bytes, unless an earlier start has; False compares sizes only.

    Raises:
        ValueError, OSError: naming the rows or key that cannot work and how to fix it.
    """
    stage = settings.stage
    # The first process of a machine checks the rows and notes it, the others read the note.
    with settings.arguments.main_process_first(desc="rows"):
        rows = open_rows(stage.train_rows, verify)
        eval_rows = open_rows(stage.eval_rows, verify) if stage.eval_rows else None
    for name, each in (("train_rows", rows), ("eval_rows", eval_rows)):
        if each is not None:
            _check_rows(f"stage{settings.number}.{name}", each, settings)
    collator = DataCollatorForWholeWordMasking.for_rows(
        rows,
        seed=settings.seed,
        mask_rate=settings.mask_rate,
        whole_words=stage.masking == Masking.WORDS.value,
    )
    return StageData(rows, eval_rows, _order(settings, rows), collator)


def _check_rows(key: str, rows: Rows, settings: StageSettings) -> None:
    longest = settings.config.max_position_embeddings
    if rows.seq_len > longest:
        raise RunConfigError(
            f"{key}: its rows of {rows.seq_len} tokens are longer than the model's "
            f"max_position_embeddings of {longest}. Raise that in the model's configuration, or "
            "prepare shorter rows."
        )
    check_tokenizer(key, rows.manifest, Path(settings.run.tokenizer, "tokenizer.json"))


def _order(settings: StageSettings, rows: Rows) -> TrainingOrder:
    rows_per_step, growing = settings.stage.rows_per_step, settings.stage.batch_warmup
    warmup = {}
    if growing is not None:
        # One for every batch of every process: the model takes none that is all padding.
        least = rows_per_step // settings.arguments.per_device_train_batch_size
        if not (least <= growing.rows <= rows_per_step and 0 <= growing.steps < settings.steps):
            raise RunConfigError(
                f"stage{settings.number}.batch_warmup: rows must lie between {least} (one for each "
                f"batch) and {rows_per_step}, and steps between 0 and {settings.steps - 1}."
            )
        warmup = {"warmup_rows": growing.rows, "warmup_steps": growing.steps}
    positions = settings.steps * rows_per_step
    return TrainingOrder(rows, positions, rows_per_step, settings.seed, **warmup)
