"""Pretrains Chinese ModernBERT: stage I on short rows, stage II on long ones.

    python train_mlm.py configs/quickstart.yaml
    python train_mlm.py configs/quickstart.yaml --resume

The run file names the rows, the model and the two schedules of each stage. The standard Trainer
does the work: the collator masks whole words at the curriculum's rate, a LambdaLR follows the
damped cosine, and callbacks log, guard and upload. Everything random or scheduled depends on the
seed and the position in the training order alone, so a run that is killed and resumed continues as
if nothing had happened: to the bit on a CPU with one or two processes, elsewhere to rounding.
"""

import argparse
import faulthandler
import signal
import sys
import traceback
from pathlib import Path

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from pretraining.command import readable_errors
from pretraining.run import checkpoints
from pretraining.run.allocator import keep_freed_memory
from pretraining.run.complete_checkpoints import last_complete_checkpoint
from pretraining.run.configuration import STAGES, load_run
from pretraining.run.evaluation import evaluated_at_the_end
from pretraining.run.guard import TrainingStopped
from pretraining.run.hub import HubPush, open_hub
from pretraining.run.model_folder import save_model_folder
from pretraining.run.replay import show_step
from pretraining.run.settings import StageSettings, check_stage, check_together
from pretraining.run.stage_data import StageData, open_data
from pretraining.run.trainer import make_model, make_trainer, summary


def main() -> None:
    disable_progress_bar()  # the run has a bar of its own
    arguments = parse_arguments()
    looking = arguments.plan or arguments.replay is not None
    numbers = STAGES if arguments.stage == "both" else (int(arguments.stage),)
    with readable_errors("train_mlm.py"):
        run = load_run(arguments.config, arguments.overrides)
        # All stages are checked before the first is trained, so that a mistake in the second shows
        # at once and not after days.
        stages = [check_stage(run, number, alone=len(numbers) == 1) for number in numbers]
        check_together(stages)
        if not looking:
            for stage in stages:
                checkpoints.check_folder(stage, arguments.resume)
        data = [open_data(stage, verify=not looking) for stage in stages]
        for stage, rows in zip(stages, data, strict=True):
            checkpoints.check_order(stage, rows)
        if arguments.replay is not None:
            return show_step(stages[0], data[0], arguments.replay)
        if arguments.plan:
            return plan(stages, data, arguments.picture)
        # Made after all checks and before any training, so that a missing permission shows now.
        hubs = [open_hub(arguments.push_to_hub, stage) for stage in stages]
    for stage, rows, hub in zip(stages, data, hubs, strict=True):
        try:
            uploaded = train(stage, rows, hub, arguments.resume)
        except TrainingStopped as stopped:
            sys.exit(f"train_mlm.py: stage {stage.number}, {stopped}")
        except Exception as error:
            if hasattr(signal, "SIGCHLD"):  # there is none on Windows
                # For a lost data worker torch raises wherever the program is, so here, too.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            traceback.print_exc()
            sys.exit(f"train_mlm.py: {checkpoints.explain(error, stage)}")
    if not uploaded:  # the last stage's; its weights take the place of an earlier one's
        sys.exit(
            f"train_mlm.py: finished, but not uploaded: {stages[-1].final}. The same command with "
            "--resume uploads it."
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="run file (YAML)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="such as stage1.learning_rate.peak=5e-4")
    add("--stage", choices=["1", "2", "both"], default="both")
    add("--resume", action="store_true", help="continue from the last complete checkpoint")
    add("--plan", action="store_true", help="check all, measure some steps, print memory and time")
    add("--picture", type=Path, help="with --plan: PNG file to draw both schedules to")
    add("--replay", type=int, metavar="STEP", help="show the rows of a step as they are masked")
    add("--push_to_hub", metavar="REPO", help="upload every checkpoint and the finished model")
    arguments = parser.parse_intermixed_args()
    if arguments.picture and not arguments.plan:
        parser.error("--picture goes with --plan")
    if arguments.replay is not None and arguments.stage == "both":
        parser.error("--replay needs --stage 1 or --stage 2")
    return arguments


def train(settings: StageSettings, data: StageData, hub: HubPush | None, resume: bool) -> bool:
    """Trains what is left of a stage and writes its model folder; False if its upload failed."""
    finished = f"stage {settings.number}, finished"
    if resume and settings.final.exists():
        print(f"stage {settings.number}: already finished, see {settings.final}")
        newer = checkpoints.is_superseded(settings)
        return hub is None or newer or hub.upload(settings.final, finished)
    checkpoint = last_complete_checkpoint(settings.folder) if resume else None
    if settings.arguments.device.type == "cpu":
        keep_freed_memory()
    set_seed(settings.run.seed)
    model = make_model(settings)
    trainer = make_trainer(settings, data, model, callbacks=[] if hub is None else [hub])
    if trainer.is_world_process_zero():
        print(summary(settings, data, model, checkpoint))
        checkpoints.note_order(settings, data)
    trainer.train(resume_from_checkpoint=checkpoint)
    if (step := trainer.state.global_step) < settings.steps:  # by `enable_jit_checkpoint`
        raise TrainingStopped(f"ended at step {step}; --resume goes on from its checkpoint.")
    if data.eval_rows is not None and not evaluated_at_the_end(trainer):
        trainer.evaluate()
    name = str(settings.final) if hub is None else hub.repo_id
    save_model_folder(trainer, settings.final, name, settings.number, data.rows)
    if trainer.is_world_process_zero():
        print(f"stage {settings.number}: finished model in {settings.final}")
    uploaded = hub is None or hub.upload(settings.final, finished)
    trainer.accelerator.wait_for_everyone()
    return uploaded


def plan(stages: list[StageSettings], data: list[StageData], picture: Path | None) -> None:
    """Prints what each stage will take; draws the schedules if asked to."""
    from pretraining.run.plan import draw_schedules, outlook  # brings matplotlib with it

    first = stages[0].arguments.process_index == 0
    for settings, rows in zip(stages, data, strict=True):
        told = outlook(settings, rows)  # by all processes together
        if first:
            print(told)
    if picture is not None and first:
        draw_schedules(stages, picture)
        print(f"schedules: {picture}")


if __name__ == "__main__":
    faulthandler.enable()  # a disk that fails under memory-mapped rows ends a process by a signal
    main()
