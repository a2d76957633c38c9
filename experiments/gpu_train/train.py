"""Trains on a machine with a GPU for some minutes, and leaves a model in parts: `make gpu-train`.

    python -m experiments.gpu_train.train --packed runs/gpu_train/packed --output OUTPUT

Needs torch, transformers, accelerate, pyarrow and what they depend on, and no network. The packed
rows are unpacked, the speed is measured, and the recipe of run.yaml is trained for as many steps as
the time allows, its schedules stretched to them; with long rows, the last part of the time belongs
to stage 2. OUTPUT then holds at most seven files of at most
15 MiB: the weights in bf16, what else belongs to the model folder, the log included, and
`report.md` with the figures on held-out rows. A run that breaks off or is killed leaves the weights
of an earlier step. `--tiny` tries all of it with tiny shapes, on the CPU.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from experiments.gpu_train.pack import HELD_OUT, LONG, PACKED, ROOT, TRAIN
from experiments.gpu_train.packed_rows import unpack
from experiments.gpu_train.parts import check_fits, round_to_bf16, split
from experiments.gpu_train.ways import (
    RUN_FILE,
    Speed,
    Way,
    first_that_works,
    in_short,
    settings_of,
    trainer_of,
)
from experiments.learning_per_hour.experiment import tokens_of_a_step
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.command import readable_errors
from pretraining.data.encoding import open_with_tokenizer
from pretraining.files import check_output
from pretraining.machine import machine
from pretraining.model_report import predict, report
from pretraining.run.configuration import load_run
from pretraining.run.evaluation import evaluation_collator
from pretraining.run.log import LOG_FILE, JsonLinesLog
from pretraining.run.model_folder import save_model_folder
from pretraining.run.settings import StageSettings

REPORT = "report.md"
NAME = "gpu-train"  # in the card of the model

TINY = (
    "model=configs/tiny.json",
    "training.use_cpu=true",
    "training.bf16=false",
    "training.dataloader_num_workers=0",
    "training.dataloader_prefetch_factor=",
    "training.logging_steps=1",
    "stage1.rows_per_step=4",
    "stage1.training.per_device_train_batch_size=4",
    "stage2.rows_per_step=1",
    "stage2.training.per_device_train_batch_size=1",
)

# Share of the time after measuring that belongs to stage 2.
STAGE2_SHARE = 0.08

# What the plan allows for a step, as a multiple of the measured time: if too many steps are
# planned, the time is up before the learning rate has come down. On an H200 stage 1 took 1.10 times
# the measured time; a token of stage 2 took as long as one of stage 1.
ALLOWED = 1.15

ENDED_WELL = ("all steps done", "the time is up")

# Kept back for saving and evaluating; training ends early rather than take from it.
ENDING_SECONDS = 40

# Shares of the steps after which the model is saved, should the run be killed, and a save's time.
SAVED_AFTER, SAVING_SECONDS = (0.5, 0.8), 5


class Deadline(TrainerCallback):
    """Ends training when its time is up, whatever steps are left."""

    def __init__(self, end: float):
        self.end = end

    def on_step_end(self, args, state, control, **kwargs):
        if time.perf_counter() > self.end and state.global_step < state.max_steps:
            print(f"the time is up after {state.global_step} of {state.max_steps} steps")
            control.should_training_stop = True


class SavedOnTheWay(TrainerCallback):
    """Saves the model after some shares of the steps, so that a run that is killed leaves one.

    Args:
        save: takes what ended the training.
    """

    def __init__(self, save: Callable[[str], object]):
        self.save = save

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in {int(share * state.max_steps) for share in SAVED_AFTER}:
            try:
                self.save("nothing yet, it was saved on the way")
            except Exception:  # not worth ending the training for
                traceback.print_exc()


class ReturnedLog(JsonLinesLog):
    """The log once more while training goes on, where it comes back if the run is killed.

    A class of its own, because Trainer warns of two callbacks of one class.
    """


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="of run.yaml")
    add(
        "--packed",
        type=Path,
        action="append",
        help=f"folder that pack.py wrote, {PACKED} unless given; again for each further part",
    )
    add("--output", type=Path, required=True, help="folder for what is to come back")
    add("--minutes", type=float, default=8.0, help="from start to end")
    add("--tiny", action="store_true", help="tiny shapes, on the CPU")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("train.py: torch sees no CUDA device; try it on the CPU with --tiny.")
    overrides = [*(TINY if arguments.tiny else ()), *arguments.overrides]
    output = arguments.output.resolve()
    packed = [folder.resolve() for folder in arguments.packed or [ROOT / PACKED]]
    end = begun + 60 * arguments.minutes - ENDING_SECONDS
    os.chdir(ROOT)  # run.yaml names files of the repository
    with readable_errors("train.py"):
        train_and_report(packed, output, overrides, end)
    print(f"{output}: done in {time.perf_counter() - begun:.0f} s")


def train_and_report(packed: list[Path], output: Path, overrides: list[str], end: float) -> None:
    """Trains until `end`, by `time.perf_counter()`, and leaves model and report in `output`.

    Args:
        packed: folders of packed rows, parts of the same row sets. Held-out sets may be in any, and
            so may long rows, on which stage 2 is trained for the last part of the time.

    Raises:
        OSError, ValueError: if settings or packed rows cannot be used, or the model would not fit.
        RuntimeError: if no way to train works. What ends the training later is written down only.
    """
    work = Path(load_run(str(RUN_FILE), overrides).output_dir)
    if work == Path(load_run(str(RUN_FILE)).output_dir):
        shutil.rmtree(work, ignore_errors=True)
    check_output(work)
    output.mkdir(parents=True, exist_ok=True)
    sets = {1: [each / TRAIN for each in packed]}
    if long := [each / LONG for each in packed if (each / LONG).exists()]:
        sets[2] = long
    overrides = [*overrides]
    for stage in sets:
        overrides.append(f"stage{stage}.train_rows={work / 'rows' / str(stage)}")
    check_fits(weight_bytes(settings_of(overrides, steps=1)))
    held_out = {}
    for each in packed:
        held_out |= {folder.name: folder for folder in sorted((each / HELD_OUT).glob("*"))}
    for stage, folders in sets.items():
        unpack(folders, work / "rows" / str(stage))
    for name, folder in held_out.items():
        unpack([folder], work / HELD_OUT / name)
    way, speed, failures = first_that_works(overrides)
    began = time.perf_counter()
    facts = {
        "way": way.name,
        "failed_ways": failures,
        **dataclasses.asdict(speed),
        "overrides": overrides,
        "made_with": machine(settings_of(overrides, steps=1).arguments.device),
        "stages": [],
    }
    final = None
    for stage in sets:
        if stage == 2 and end - time.perf_counter() < 2 * speed.next_start_seconds:
            print("no time is left for stage 2", flush=True)
            break
        kept_back = STAGE2_SHARE * (end - began) if stage == 1 and 2 in sets else 0
        final = train_stage(stage, way, speed, overrides, output, end - kept_back, facts, final)
        if facts["stages"][-1]["ended_by"] not in ENDED_WELL:
            break
    # The weights are safe now, should the evaluation fail.
    write_report(final, [work / HELD_OUT / name for name in held_out], output / REPORT)


def train_stage(
    stage: int,
    way: Way,
    speed: Speed,
    overrides: list[str],
    output: Path,
    end: float,
    facts: dict,
    before: Path | None,
) -> Path:
    """Trains a stage until `end`, leaves its model in `output`; returns the model's folder.

    If stage 2 breaks off, the model of stage 1 stays: the guard has stopped what it spoils.

    Args:
        speed: of stage 1.
        before: the model of the stage before, if there is one.
        facts: for `parts.json`; what became of the stage is added to its `stages`.
    """
    left = end - time.perf_counter() - speed.next_start_seconds
    step_seconds = ALLOWED * speed.step_seconds
    if stage == 1:
        left -= len(SAVED_AFTER) * SAVING_SECONDS
    else:
        run = load_run(str(RUN_FILE), overrides)
        step_seconds *= tokens_of_a_step(run, 2) / tokens_of_a_step(run, 1)
    steps = max(1, int(left / step_seconds))
    print(f"{way.name}: {speed}; {left:.0f} s are left, so {steps:,} steps", flush=True)
    extra = [ReturnedLog(output / LOG_FILE), Deadline(end)]
    trainer, settings, data = trainer_of(overrides, way, steps, extra, stage)

    def leave(model: Path, done: int, ended_by: str) -> dict:
        """Leaves a model with so many steps of this stage in it."""
        told = {
            "stage": stage,
            "steps": done,
            "planned_steps": steps,
            "positions": data.order.drawn_before(done) * data.rows.seq_len,
            "ended_by": ended_by,
        }
        split(model, output, facts | {"stages": [*facts["stages"], told]})
        return told

    def save(ended_by: str) -> dict:
        save_model_folder(trainer, settings.final, NAME, stage, data.rows)
        # Trained on in fp32, brought back in bf16.
        rounded = settings.folder / "rounded"
        shutil.rmtree(rounded, ignore_errors=True)
        shutil.copytree(settings.final, rounded)
        round_to_bf16(rounded)
        return leave(rounded, trainer.state.global_step, ended_by)

    if stage == 1:  # later, the model of stage 1 is there
        trainer.add_callback(SavedOnTheWay(save))
    try:
        trainer.train()
        ended_by = ENDED_WELL[trainer.state.global_step < steps]
    except Exception as error:  # such as the guard's: what was learned until then is kept
        if stage == 1 and not trainer.state.global_step:
            raise
        traceback.print_exc()
        ended_by = in_short(error)
    broken_off = before is not None and ended_by not in ENDED_WELL
    facts["stages"].append(leave(before, 0, ended_by) if broken_off else save(ended_by))
    print(f"stage {stage} ended after {trainer.state.global_step:,} steps: {ended_by}", flush=True)
    if broken_off:
        return before
    (output / LOG_FILE).unlink()  # the archive has all of it, as training_log.json
    return settings.folder / "rounded"


def weight_bytes(settings: StageSettings) -> int:
    """Bytes of the model's weights in bf16."""
    with torch.device("meta"):
        return 2 * ChineseModernBertForMaskedLM(settings.config).num_parameters()


def write_report(model: Path, held_out: list[Path], file: Path) -> None:
    """Writes what the finished weights achieve, as model_report prints it."""
    sections = []
    for folder in held_out:
        rows, tokenizer = open_with_tokenizer(folder, model / "tokenizer.json")
        predicted = predict(str(model), rows, evaluation_collator(rows))
        found = report(folder.name, rows, tokenizer, {"model": predicted})
        sections += [found.table(), found.by_character(tokenizer)]
        file.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print("\n\n".join(sections))


if __name__ == "__main__":
    main()
