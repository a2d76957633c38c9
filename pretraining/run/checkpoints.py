"""The folder of a stage: what an earlier start left there, and how to go on from it."""

import shutil
from pathlib import Path

from pretraining.data.rows import RowsError
from pretraining.files import read_json, write_json
from pretraining.run.complete_checkpoints import last_complete_checkpoint
from pretraining.run.configuration import STAGES, RunConfigError
from pretraining.run.model_folder import TRAINING_LOG
from pretraining.run.settings import StageSettings, stage_folder
from pretraining.run.stage_data import StageData

ORDER_FILE = "order.json"

# Below this many free bytes we assume that the disk is full.
FULL_DISK = 16 << 20


def check_folder(settings: StageSettings, resume: bool) -> None:
    """Whether a stage can begin in its folder, or go on there.

    Raises:
        RunConfigError: if it is to begin and the folder holds an earlier run; or if it is to go on
            and is finished after other steps, or under way beyond its last, or is to be trained
            again under a second stage that has begun.
    """
    folder, final, steps = settings.folder, settings.final, settings.arguments.max_steps
    second = settings.run.stage2
    follows = second is not None and second.init_from is None
    if resume and follows and not final.exists() and is_superseded(settings):
        raise RunConfigError(
            f"stage 2 has begun, from a stage 1 whose {final} is not there. Go on with --stage 2; "
            f"or move {stage_folder(settings.run, 2)} away, and it begins again."
        )
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunConfigError(
            f"{folder} holds an earlier run. Add --resume to continue it, or set output_dir to a "
            "new folder."
        )
    if final.exists():
        log = final / TRAINING_LOG
        done = max(entry["step"] for entry in read_json(log)) if log.exists() else steps
        if done != steps:
            raise RunConfigError(
                f"{final} was finished after {done} steps, and max_steps of stage "
                f"{settings.number} is {steps}. Set it as it was; or move that folder away, and "
                "the last checkpoint is gone on from."
            )
        return
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint and int(checkpoint.rpartition("-")[2]) > steps:
        raise RunConfigError(
            f"{checkpoint} is beyond step {steps}, the max_steps of stage {settings.number}. "
            "Raise it; or move that checkpoint away, and the one before it is gone on from."
        )


def check_order(settings: StageSettings, data: StageData) -> None:
    """Whether what an earlier start left was begun in this training order.

    Raises:
        RunConfigError: if it was another.
    """
    folder = settings.folder
    file = folder / ORDER_FILE
    if not file.exists():
        return
    begun, now = read_json(file), _order_facts(settings, data)
    # Older files do not name the masking.
    if changed := [key for key in now if key in begun and begun[key] != now[key]]:
        raise RunConfigError(
            f"{folder} was begun with another {' and '.join(changed)}, so its training order "
            "cannot be continued. Set it as it was, or output_dir to a new folder."
        )


def is_superseded(settings: StageSettings) -> bool:
    """Whether a later stage has weights already."""
    later = [stage_folder(settings.run, number) for number in STAGES if number > settings.number]
    return any(any(folder.glob("checkpoint-*")) or (folder / "final").exists() for folder in later)


def note_order(settings: StageSettings, data: StageData) -> None:
    """Writes down what a later start has to agree with."""
    write_json(settings.folder / ORDER_FILE, _order_facts(settings, data))


def _order_facts(settings: StageSettings, data: StageData) -> dict:
    """What the training order and the masks follow from."""
    stage = settings.stage
    return {
        "seed": settings.run.seed,
        "rows_per_step": stage.rows_per_step,
        "batch_warmup": stage.batch_warmup and vars(stage.batch_warmup),
        "masking": stage.masking,
        "train_rows": [shard["sha256"] for shard in data.rows.manifest["shards"]],
    }


def _is_full(folder: Path) -> bool:
    """Whether its disk is; before the first step the folder may not be there yet."""
    return folder.exists() and shutil.disk_usage(folder).free < FULL_DISK


def explain(error: Exception, settings: StageSettings) -> str:
    """What an error in mid-training means, and how to go on, in one line."""
    folder, cause = settings.folder, f"{type(error).__name__}: {error}"
    if isinstance(error, RowsError):
        cause = str(error).strip().splitlines()[-1]  # a data worker puts its traceback before
    elif "Bus error" in cause:
        cause = (
            f"rows that were being read have gone ({cause}). Check their disk, and whether another "
            "program writes to them; or give /dev/shm more room"
        )
    elif _is_full(folder) or "File too large" in cause:
        cause = f"{folder} takes no more data ({cause}). Make room there"
    elif "DataLoader worker" in cause or (
        # Where it was lost while it handed over a batch.
        isinstance(error, ConnectionError | EOFError) and settings.arguments.dataloader_num_workers
    ):
        cause = (
            f"a data worker was lost ({cause}), perhaps for want of memory. Lower "
            "training.dataloader_num_workers"
        )
    else:
        cause = f"{cause}. Fix that"
    checkpoint = last_complete_checkpoint(folder)
    there = f"the last complete checkpoint, {checkpoint}" if checkpoint else "the start"
    return f"stage {settings.number} stopped. {cause.rstrip('.')}; --resume goes on from {there}."
