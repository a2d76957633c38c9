"""Trains the twin: a BERT with whole-word masking on the rows of a character vocabulary.

    python -m experiments.twin.train_twin --rows runs/twin/rows/train-512 \\
        --tokenizer runs/twin/tokenizer --like configs/mini.json --steps 12000 \\
        --learning_rate 1e-3 --output runs/twin/1e-3-seed1 --seed 1

As BERT-wwm has it: 15 % of the tokens masked, the characters of a word together, AdamW, a rate that
rises and falls linearly. The standard Trainer does the work, in bf16 and compiled. Order and masks
depend on the seed and the position in training alone, as in train_mlm.py, so a run that is killed
goes on with `--resume` as if nothing had happened. OUTPUT/final is the finished model, OUTPUT/
log.jsonl the log.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from data_collator_wwm import IGNORED, DataCollatorForWholeWordMasking
from experiments.twin.model import POSITIONS, Twin, shape_like
from pretraining.command import readable_errors
from pretraining.data.encoding import check_tokenizer
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import Rows, open_rows
from pretraining.files import read_json, write_json
from pretraining.run.complete_checkpoints import last_complete_checkpoint
from pretraining.run.log import LOG_FILE, JsonLinesLog
from pretraining.run.progress import ProgressReport

MASK_RATE = 0.15
WARMUP_SHARE = 0.1
RUN_FILE = "run.json"


@dataclass(frozen=True)
class TwinRun:
    """What a run follows from.

    Attributes:
        rows: a row set, made with the twin's tokenizer.
        tokenizer: its folder.
        like: configuration of our model, whose size the twin has.
        output: folder for checkpoints, log and finished model.
        steps: optimizer steps.
        learning_rate: the highest.
        rows_per_step: rows of an optimizer step.
        seed: of weights, order and masks.
        compiled: whether torch compiles the model.
    """

    rows: Path
    tokenizer: Path
    like: Path
    output: Path
    steps: int
    learning_rate: float
    rows_per_step: int = 8
    seed: int = 1
    compiled: bool = True

    def __post_init__(self):
        for name in ("steps", "rows_per_step", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} {getattr(self, name)}: give a number above 0.")

    def facts(self, rows: Rows) -> dict:
        """What a later start has to agree with, as JSON has it."""
        same = ("steps", "learning_rate", "rows_per_step", "seed")
        return {
            **{name: getattr(self, name) for name in same},
            "like": read_json(self.like),
            "rows": [shard["sha256"] for shard in rows.manifest["shards"]],
        }


class MaskedPlaces:
    """Collates rows as our collator does, and lists the masked places for the head.

    Args:
        rows: the row set.
        seed: of the masks.
    """

    def __init__(self, rows: Rows, seed: int):
        self.collator = DataCollatorForWholeWordMasking.for_rows(
            rows, seed=seed, mask_rate=MASK_RATE
        )
        self.places_of_a_row = math.ceil(MASK_RATE * rows.seq_len)

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """The arguments of `Twin.forward`."""
        batch = self.collator(features)
        labels = batch["labels"].flatten()
        found = (labels != IGNORED).nonzero().flatten()
        masked = torch.zeros(len(features) * self.places_of_a_row, dtype=torch.long)
        wanted = torch.full_like(masked, IGNORED)
        masked[: len(found)], wanted[: len(found)] = found, labels[found]
        return {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "masked": masked,
            "labels": wanted,
        }


class SpeedAndBits(TrainerCallback):
    """Adds to each log tokens a second since the last one, and the loss in bits per character.

    It has to come before the callbacks that write logs down, because they share one dict.

    Args:
        characters_per_token: of the rows.
    """

    def __init__(self, characters_per_token: float):
        self.characters_per_token = characters_per_token

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = (time.perf_counter(), state.num_input_tokens_seen)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        then, tokens_then = self.last
        self.last = (time.perf_counter(), state.num_input_tokens_seen)
        bits = logs["loss"] / math.log(2) / self.characters_per_token
        added = {
            "mask_rate": MASK_RATE,
            "bits_per_character": round(bits, 4),
            "tokens_per_second": round((self.last[1] - tokens_then) / (self.last[0] - then), 1),
        }
        logs.update(added)
        state.log_history[-1].update(added)


def training_arguments(run: TwinRun) -> TrainingArguments:
    """BERT's recipe, on whatever this machine has."""
    return TrainingArguments(
        output_dir=str(run.output),
        max_steps=run.steps,
        per_device_train_batch_size=run.rows_per_step,
        learning_rate=run.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_SHARE,  # below 1, a share of the steps
        optim="adamw_torch_fused",
        weight_decay=0.01,
        adam_epsilon=1e-6,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        torch_compile=run.compiled,
        seed=run.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_nan_inf_filter=False,
        logging_steps=50,
        save_steps=250,
        save_total_limit=2,
        report_to="none",
    )


def make_trainer(run: TwinRun, rows: Rows) -> Trainer:
    """A Trainer that is ready to train the twin.

    Raises:
        OSError, ValueError: if rows, tokenizer or our model's configuration cannot be used.
    """
    if rows.seq_len > POSITIONS:
        raise ValueError(
            f"{run.rows}: rows of {rows.seq_len} tokens; BERT knows {POSITIONS} positions, so "
            f"prepare rows of at most that."
        )
    check_tokenizer(str(run.rows), rows.manifest, run.tokenizer / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(run.tokenizer)
    shape = shape_like(run.like, len(tokenizer))
    set_seed(run.seed)
    trainer = Trainer(
        model=Twin(shape.config(len(tokenizer), tokenizer.pad_token_id)),
        args=training_arguments(run),
        train_dataset=TrainingOrder(
            rows, run.steps * run.rows_per_step, run.rows_per_step, run.seed
        ),
        data_collator=MaskedPlaces(rows, run.seed),
        processing_class=tokenizer,
        callbacks=[JsonLinesLog(run.output / LOG_FILE)],
    )
    speed = SpeedAndBits(rows.manifest["characters"] / rows.manifest["tokens"])
    trainer.callback_handler.callbacks.insert(0, speed)
    ProgressReport.add_to(trainer)
    return trainer


def begin(run: TwinRun, rows: Rows, resume: bool) -> str | None:
    """Notes what the run follows from; returns the checkpoint that it goes on from.

    Raises:
        ValueError: if the folder holds another run, or a run that was not asked to be resumed.
    """
    file, facts = run.output / RUN_FILE, run.facts(rows)
    if file.exists():
        if not resume:
            raise ValueError(f"{run.output} holds a run; add --resume or choose another --output.")
        begun = read_json(file)
        if different := [name for name in facts if begun.get(name) != facts[name]]:
            raise ValueError(
                f"{run.output} was begun with other {', '.join(different)}; repeat that command or "
                "choose another --output."
            )
    write_json(file, facts)
    return last_complete_checkpoint(run.output)


def train(run: TwinRun, resume: bool = False) -> None:
    """Trains the twin, or what is left of it, and writes OUTPUT/final.

    Raises:
        OSError, ValueError: before training, naming what cannot be used and how to fix it.
    """
    rows = open_rows(run.rows)
    trainer = make_trainer(run, rows)
    checkpoint = begin(run, rows, resume)
    config = trainer.model.config
    positions = run.steps * run.rows_per_step
    print(
        f"{trainer.model.num_parameters() / 1e6:.1f} M parameters, {config.num_hidden_layers} × "
        f"{config.hidden_size} ({config.intermediate_size}), from {checkpoint or 'fresh weights'}\n"
        f"  {run.steps:,} steps × {run.rows_per_step} rows × {rows.seq_len} tokens, "
        f"{positions / len(rows):.2f} epochs of {run.rows}"
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    final = run.output / "final"
    trainer.save_model(str(final))
    (final / "training_args.bin").unlink()
    print(f"finished model in {final}")


def main() -> None:
    disable_progress_bar()  # the run has a bar of its own
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="row set, by prepare_corpus with --tokenizer")
    add("--tokenizer", type=Path, required=True, help="folder, by make_tokenizer")
    add("--like", type=Path, required=True, help="configuration of our model, to be as large as")
    add("--output", type=Path, required=True, help="folder for checkpoints, log and final model")
    add("--steps", type=int, required=True, help="optimizer steps")
    add("--learning_rate", type=float, required=True, help="the highest")
    add("--rows_per_step", type=int, default=8, help="rows of an optimizer step")
    add("--seed", type=int, default=1, help="of weights, order and masks")
    add("--no_compile", dest="compiled", action="store_false", help="without torch.compile")
    add("--resume", action="store_true", help="continue from the last complete checkpoint")
    values = vars(parser.parse_args())
    resume = values.pop("resume")
    with readable_errors("train_twin"):
        train(TwinRun(**values), resume)


if __name__ == "__main__":
    main()
