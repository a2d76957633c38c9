"""Trains a run's model to detect replaced tokens, where train_mlm.py has it predict masked ones.

    python -m experiments.learning_per_hour.train_replaced_tokens RUN.yaml KEY=VALUE ... --resume

Rows, order, masks, schedules and optimizer are those of stage 1 of the run file. The finished model
is the detector, a model folder to fine-tune. As in train_mlm.py, everything random follows from the
seed and the position in training.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from transformers import Trainer, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from experiments.learning_per_hour.replaced_tokens import (
    CollatorWithDraws,
    LogOfBothLosses,
    ReplacedTokenDetection,
)
from pretraining.files import new_folder, write_json
from pretraining.run.allocator import keep_freed_memory
from pretraining.run.checkpoints import check_folder, check_order, note_order
from pretraining.run.complete_checkpoints import last_complete_checkpoint
from pretraining.run.configuration import RunConfigError, load_run
from pretraining.run.guard import TrainingStopped
from pretraining.run.model_folder import TRAINING_LOG
from pretraining.run.settings import StageSettings, check_stage
from pretraining.run.stage_data import StageData, open_data
from pretraining.run.trainer import make_trainer


def make_detection_trainer(
    settings: StageSettings, data: StageData, callbacks: list[TrainerCallback]
) -> Trainer:
    """A Trainer that is ready to train generator and detector from fresh weights.

    Raises:
        RunConfigError: if the run starts from given weights or evaluates.
    """
    if settings.source is not None or data.eval_rows is not None:
        raise RunConfigError(
            f"stage{settings.number}: replaced-token detection starts from fresh weights and has "
            "no bits per character. Leave init_from and eval_rows out."
        )
    data = dataclasses.replace(data, collator=CollatorWithDraws(data.collator))
    model = ReplacedTokenDetection(settings.config)
    trainer = make_trainer(settings, data, model, callbacks)
    LogOfBothLosses.add_to(trainer)
    return trainer


def train(settings: StageSettings, data: StageData, resume: bool) -> None:
    """Trains stage 1, or what is left of it, and writes its finished detector."""
    if resume and settings.final.exists():
        print(f"already finished, see {settings.final}")
        return
    checkpoint = last_complete_checkpoint(settings.folder) if resume else None
    if settings.arguments.device.type == "cpu":
        keep_freed_memory()
    set_seed(settings.run.seed)
    trainer = make_detection_trainer(settings, data, [])
    model = trainer.model
    print(
        f"detector {model.detector.num_parameters() / 1e6:.1f} M parameters, with its generator "
        f"{model.num_parameters() / 1e6:.1f} M, from {checkpoint or 'fresh weights'}; "
        f"{settings.steps:,} steps × {settings.stage.rows_per_step} rows × {data.rows.seq_len}"
    )
    note_order(settings, data)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_detector(trainer, settings)
    print(f"finished detector in {settings.final}")


def save_detector(trainer: Trainer, settings: StageSettings) -> None:
    """Writes detector, code, tokenizer and log; the folder appears once it is complete."""
    with new_folder(settings.final) as folder:
        trainer.accelerator.unwrap_model(trainer.model).detector.save_pretrained(folder)
        settings.tokenizer.save_pretrained(folder)
        write_json(folder / TRAINING_LOG, trainer.state.log_history)


def main() -> None:
    disable_progress_bar()  # the run has a bar of its own
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", type=Path, help="run file (YAML)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="such as stage1.learning_rate.peak=5e-4")
    add("--resume", action="store_true", help="continue from the last complete checkpoint")
    arguments = parser.parse_intermixed_args()
    try:
        run = load_run(str(arguments.config), arguments.overrides)
        settings = check_stage(run, 1, alone=True)
        check_folder(settings, arguments.resume)
        data = open_data(settings)
        check_order(settings, data)
        train(settings, data, arguments.resume)
    except (OSError, ValueError, TrainingStopped) as error:
        sys.exit(f"train_replaced_tokens: {error}")


if __name__ == "__main__":
    main()
