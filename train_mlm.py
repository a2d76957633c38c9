"""Pretrains Chinese ModernBERT: stage I on short rows, stage II on long ones.

    python train_mlm.py configs/quickstart.yaml
    python train_mlm.py configs/quickstart.yaml --stage 2 --resume stage2.training.max_steps=200

The run file names the rows, the model and the two schedules of each stage. The standard Trainer
does the work: the collator masks whole words at the curriculum's rate, a LambdaLR follows the
damped cosine, and a callback completes the log. Everything random or scheduled depends on the seed
and the position in the training order alone, so a run that is killed and resumed goes on as if
nothing had happened.
"""

import argparse
import faulthandler
import functools
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import DataCollatorForWholeWordMasking
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, choose_attention
from pretraining.data.encoding import check_tokenizer, token_lengths
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import RowsError, open_rows
from pretraining.files import write_json
from pretraining.run.configuration import STAGES, Run, RunConfigError, load_run
from pretraining.run.evaluation import (
    EvaluationRows,
    MaskedLanguageModellingMetrics,
    TrainOrEvaluationCollator,
    evaluation_collator,
    reduce_logits,
)
from pretraining.run.flops import matrix_product_rate
from pretraining.run.guard import Guard, TrainingStopped
from pretraining.run.hub import HubPush, save_model_folder
from pretraining.run.log import LOG_FILE, JsonLinesLog, TrainingLog
from pretraining.run.schedules import DampedCosine, mask_rate
from pretraining.run.sharding import SavedLikeAny, check_sharding

ORDER_FILE = "order.json"

# With less room than this, in bytes, an error is put down to the disk.
FULL_DISK = 16 << 20


def main() -> None:
    arguments = parse_arguments()
    try:
        run = load_run(arguments.config, arguments.overrides)
        numbers = STAGES if arguments.stage == "both" else (int(arguments.stage),)
        plans = [StagePlan(run, number, arguments) for number in numbers]
        if arguments.replay is not None:
            if len(plans) > 1:
                raise RunConfigError("--replay needs --stage 1 or --stage 2.")
            return plans[0].replay(arguments.replay)
        if arguments.plan:
            return show_plans(plans, Path(run.output_dir) / "plan.png")
    except (OSError, ValueError) as error:
        sys.exit(f"train_mlm.py: {error}")
    for plan in plans:
        try:
            plan.train()
        except TrainingStopped as stopped:
            sys.exit(f"train_mlm.py: stage {plan.number}, {stopped}")
        except Exception as error:
            if hasattr(signal, "SIGCHLD"):  # there is none on Windows
                # For a lost data worker torch raises wherever the program is, so here, too.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            traceback.print_exc()
            sys.exit(f"train_mlm.py: {plan.explain(error)}")


def show_plans(plans: list["StagePlan"], picture: Path) -> None:
    """Prints what each stage will do, and draws their schedules."""
    from pretraining.run.plan import draw_schedules  # brings matplotlib with it

    for plan in plans:
        print(plan.outlook())
    draw_schedules(plans, picture)
    print(f"schedules: {picture}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="run file (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="replaces a value of the run file, such as stage1.learning_rate.peak=5e-4",
    )
    parser.add_argument("--stage", choices=["1", "2", "both"], default="both")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last complete checkpoint"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="check everything, measure a few steps, print memory and time, train nothing",
    )
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="show the rows of a step as they are masked"
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="REPO",
        help="upload every checkpoint and the finished model to this repository",
    )
    return parser.parse_intermixed_args()


class StagePlan:
    """One stage, checked when it is built and trained when it is asked to.

    Both stages of a run are built before the first is trained, so that a mistake in the second
    shows at once and not after days.

    Raises:
        ValueError, OSError: naming the file or key that cannot work, and the mend.
    """

    def __init__(self, run: Run, number: int, arguments: argparse.Namespace):
        # What looks at a run may look at one that is there.
        looking = arguments.plan or arguments.replay is not None
        self.run, self.number, self.resume = run, number, arguments.resume or looking
        self.stage = run.stage(number)
        self.folder = Path(run.output_dir) / f"stage{number}"
        self.final = self.folder / "final"
        self.push_to_hub = arguments.push_to_hub
        self.done = self.resume and self.final.exists()
        if not self.resume and self.folder.exists() and any(self.folder.iterdir()):
            raise RunConfigError(
                f"{self.folder} holds an earlier run. Add --resume to go on with it, or set "
                "output_dir to a new folder."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(run.tokenizer, trust_remote_code=True)
        self.training_arguments = self._training_arguments()
        # The first process of a machine checks the rows and notes it, the others read the note.
        with self.training_arguments.main_process_first(desc="rows"):
            self.rows = open_rows(self.stage.train_rows)
            self.eval_rows = open_rows(self.stage.eval_rows) if self.stage.eval_rows else None
        self.rows_per_step = self.stage.rows_per_step
        self.steps = self.training_arguments.max_steps
        self.learning_rate = DampedCosine(total_steps=self.steps, **vars(self.stage.learning_rate))
        self.mask_rate = functools.partial(
            mask_rate, total_steps=self.steps, **vars(self.stage.mask_rate)
        )
        self.mask_rate(0)  # refuses contradictory settings now
        self.seed = run.seed + number  # the stages draw different orders and masks
        self.order = self._order()
        self._check_start_and_shapes(arguments)
        self._check_order()
        # Made last and before any training, so that a missing permission shows now.
        push = self.push_to_hub and self.training_arguments.process_index == 0
        self.hub = HubPush(self.push_to_hub, number) if push else None

    def _training_arguments(self) -> TrainingArguments:
        values = self.run.training | self.stage.training
        if values.get("max_steps", 0) < 1:
            raise RunConfigError(
                f"stage{self.number}.training.max_steps is missing: it fixes the length of the "
                "stage, on which both schedules depend. Set it to at least 1."
            )
        if self.stage.eval_rows is None and values.get("eval_strategy", "no") != "no":
            raise RunConfigError(
                f"stage{self.number}.eval_rows is missing, but eval_strategy asks for evaluation."
            )
        # All parameters take part in every step, so DDP need not search for those that do not.
        values.setdefault("ddp_find_unused_parameters", False)
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            seed=self.run.seed,
            learning_rate=self.stage.learning_rate.peak,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            include_num_input_tokens_seen="non_padding",
            logging_nan_inf_filter=False,  # a loss that is not finite stops the run
            **values,
        )
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
        except ImportError as error:
            raise RunConfigError(f"stage{self.number}.training.optim: {error}") from error
        except ValueError:
            pass  # one that wants to see the model; Trainer will ask again
        at_once = arguments.per_device_train_batch_size * arguments.world_size
        accumulated, left = divmod(self.stage.rows_per_step, at_once)
        if left or not accumulated:
            raise RunConfigError(
                f"stage{self.number}.rows_per_step: {self.stage.rows_per_step} rows cannot be "
                f"dealt to {arguments.world_size} processes in batches of "
                f"{arguments.per_device_train_batch_size}. Make it a multiple of {at_once}, or "
                f"change stage{self.number}.training.per_device_train_batch_size."
            )
        arguments.gradient_accumulation_steps = accumulated
        return arguments

    def _order(self) -> TrainingOrder:
        warmup = {}
        if (given := self.stage.batch_warmup) is not None:
            # One for every batch of every process: the model takes none that is all padding.
            least = self.rows_per_step // self.training_arguments.per_device_train_batch_size
            if not (least <= given.rows <= self.rows_per_step and 0 <= given.steps < self.steps):
                raise RunConfigError(
                    f"stage{self.number}.batch_warmup: rows must lie between {least} (one for each "
                    f"batch) and {self.rows_per_step}, and steps between 0 and {self.steps - 1}."
                )
            warmup = {"warmup_rows": given.rows, "warmup_steps": given.steps}
        positions = self.steps * self.rows_per_step
        return TrainingOrder(self.rows, positions, self.rows_per_step, self.seed, **warmup)

    def _check_start_and_shapes(self, arguments: argparse.Namespace) -> None:
        """Where the weights come from, and whether rows, tokenizer and model belong together."""
        source = self.stage.init_from
        if source is None and self.number == 2:
            source = str(Path(self.run.output_dir) / "stage1" / "final")
            if arguments.stage == "2" and not Path(source, "model.safetensors").exists():
                raise RunConfigError(
                    f"stage 2 starts from stage 1's weights, and {source} holds none. Train "
                    "stage 1 first (--stage both), or name a model folder in stage2.init_from."
                )
        elif source is not None and not Path(source, "config.json").exists():
            raise RunConfigError(
                f"stage{self.number}.init_from: {source} is not a model folder, it has no "
                "config.json."
            )
        self.source = source
        if source is not None and Path(source, "config.json").exists():
            config_file = Path(source, "config.json")
        else:
            config_file = Path(self.run.model)
        try:
            self.config = ChineseModernBertConfig.from_json_file(str(config_file))
        except FileNotFoundError:
            raise RunConfigError(f"model: {config_file} does not exist.") from None
        except json.JSONDecodeError as error:
            raise RunConfigError(f"{config_file}: not a JSON file: {error}") from error
        except ValueError as error:
            raise RunConfigError(f"{config_file}: {error}") from error
        for name, rows in (("train_rows", self.rows), ("eval_rows", self.eval_rows)):
            if rows is None:
                continue
            self._check_rows(f"stage{self.number}.{name}", rows)
        if len(self.tokenizer) != self.config.vocab_size:
            raise RunConfigError(
                f"{config_file}: vocab_size {self.config.vocab_size} does not fit the tokenizer "
                f"in {self.run.tokenizer}, which has {len(self.tokenizer)} entries."
            )

    def _check_rows(self, key: str, rows) -> None:
        if rows.seq_len > self.config.max_position_embeddings:
            raise RunConfigError(
                f"{key}: its rows of {rows.seq_len} tokens are longer than the model's "
                f"max_position_embeddings of {self.config.max_position_embeddings}. Raise that in "
                "the model's configuration, or prepare shorter rows."
            )
        check_tokenizer(key, rows.manifest, Path(self.run.tokenizer, "tokenizer.json"))

    def _order_facts(self) -> dict:
        """What the training order and the masks follow from."""
        return {
            "seed": self.run.seed,
            "rows_per_step": self.rows_per_step,
            "batch_warmup": self.stage.batch_warmup and vars(self.stage.batch_warmup),
            "train_rows": [shard["sha256"] for shard in self.rows.manifest["shards"]],
        }

    def _check_order(self) -> None:
        """A resumed stage goes on in the order in which it began."""
        file = self.folder / ORDER_FILE
        if not file.exists():
            return
        begun = json.loads(file.read_text(encoding="utf-8"))
        if changed := [key for key, value in self._order_facts().items() if begun[key] != value]:
            raise RunConfigError(
                f"{self.folder} was begun with another {' and '.join(changed)}, so its order "
                "cannot be gone on with. Set it as it was, or output_dir to a new folder."
            )

    def train(self) -> None:
        """Trains the stage, or what is left of it, and writes its finished model folder."""
        if self.done:
            print(f"stage {self.number}: already finished, see {self.final}")
            self._push_final()
            return
        checkpoint = last_complete_checkpoint(self.folder) if self.resume else None
        set_seed(self.run.seed)
        if self.source is None:
            model = ChineseModernBertForMaskedLM(self.config)
        else:
            model = ChineseModernBertForMaskedLM.from_pretrained(self.source)
        trainer = self._trainer(model)
        if trainer.is_world_process_zero():
            print(self._summary(model, checkpoint))
            write_json(self.folder / ORDER_FILE, self._order_facts())
        trainer.train(resume_from_checkpoint=checkpoint)
        if self.eval_rows is not None and not evaluated_at_the_end(trainer.state):
            trainer.evaluate()
        name = self.push_to_hub or str(self.final)
        save_model_folder(trainer, self.final, name, self.number, self.rows)
        if trainer.is_world_process_zero():
            print(f"stage {self.number}: finished model in {self.final}")
            self._push_final()
        trainer.accelerator.wait_for_everyone()

    def explain(self, error: Exception) -> str:
        """What an error in mid-training means, and how to go on."""
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, RowsError):
            cause = str(error).strip().splitlines()[-1]  # a data worker puts its traceback before
        elif "Bus error" in cause:
            cause = (
                f"rows that were being read have gone ({cause}). See to their disk, and whether "
                "another program writes to them; or give /dev/shm more room"
            )
        elif shutil.disk_usage(self.folder).free < FULL_DISK or "File too large" in cause:
            cause = f"{self.folder} takes no more data ({cause}). Make room there"
        elif "DataLoader worker" in cause:
            cause = (
                f"a data worker was lost ({cause}), perhaps for want of memory. Lower "
                "training.dataloader_num_workers"
            )
        else:
            cause = f"{cause}. Mend the cause"
        checkpoint = last_complete_checkpoint(self.folder)
        there = f"the last complete checkpoint, {checkpoint}" if checkpoint else "the start"
        return f"stage {self.number} stopped. {cause.rstrip('.')}; --resume goes on from {there}."

    def _push_final(self) -> None:
        if self.hub is not None:
            self.hub.upload(self.final, f"stage {self.number}, finished")

    def _trainer(self, model: ChineseModernBertForMaskedLM) -> Trainer:
        # Ours comes before the callbacks that write logs down, so that they write its figures too.
        callbacks = [
            SavedLikeAny(),
            TrainingLog(self.mask_rate, self.order, self.config),
            Guard(self.folder, self.order.positions),
            JsonLinesLog(self.folder / LOG_FILE),
            *(
                callback()
                for callback in get_reporting_integration_callbacks(
                    self.training_arguments.report_to
                )
            ),
        ]
        self.training_arguments.report_to = []
        if self.hub is not None:
            callbacks.append(self.hub)
        trainer = Trainer(
            model=model,
            args=self.training_arguments,
            train_dataset=self.order,
            eval_dataset=None if self.eval_rows is None else EvaluationRows(self.eval_rows),
            data_collator=TrainOrEvaluationCollator(
                train=self.collator(),
                evaluation=None if self.eval_rows is None else evaluation_collator(self.eval_rows),
            ),
            processing_class=self.tokenizer,
            compute_metrics=None
            if self.eval_rows is None
            else MaskedLanguageModellingMetrics(
                token_lengths(self.tokenizer.backend_tokenizer), self.eval_rows
            ),
            preprocess_logits_for_metrics=reduce_logits,
            callbacks=callbacks,
        )
        check_sharding(trainer)
        optimizer = trainer.create_optimizer()
        peak = self.stage.learning_rate.peak
        trainer.lr_scheduler = LambdaLR(optimizer, lambda step: self.learning_rate(step) / peak)
        return trainer

    def collator(self) -> DataCollatorForWholeWordMasking:
        """Masks the rows of the stage by their position and the curriculum."""
        return DataCollatorForWholeWordMasking.for_rows(
            self.rows, seed=self.seed, mask_rate=self.mask_rate
        )

    def outlook(self) -> str:
        """Steps, tokens, memory and time of the stage, from a short measurement here.

        Raises:
            RunConfigError: if the model does not fit this machine.
        """
        from pretraining.run.plan import (
            BYTES_PER_PARAMETER,
            duration,
            measure,
            memory_of,
            operations,
        )

        device, processes = self.training_arguments.device, self.training_arguments.world_size
        with torch.device("meta"):
            state = BYTES_PER_PARAMETER * ChineseModernBertForMaskedLM(self.config).num_parameters()
        if state > (there := memory_of(device)):
            raise RunConfigError(
                f"stage {self.number}: weights, gradients and AdamW's moments take "
                f"{state / 2**30:.1f} GiB, and {device} has {there / 2**30:.1f} GiB. Choose a "
                "smaller model (configs/)."
            )
        set_seed(self.run.seed)
        model = ChineseModernBertForMaskedLM(self.config)
        summary = self._summary(model, None)
        measured = measure(self._trainer(model))
        if not any(self.folder.iterdir()):  # Trainer made it
            self.folder.rmdir()
        dtype = torch.bfloat16 if self.training_arguments.bf16 else torch.float32
        products = processes * matrix_product_rate(self.config, dtype, device)
        flops = operations(self.config, self.order, self.steps, self.mask_rate)
        seconds = self.steps * measured.seconds_per_step
        return (
            f"{summary}\n"
            f"  memory: {state / 2**30:.1f} GiB for weights, gradients and AdamW in fp32; "
            f"{measured.peak_bytes / 2**30:.1f} GiB at the most, measured\n"
            f"  operations: {flops:.2e}, at {flops / seconds / products:.0%} of the rate of plain "
            f"matrix products ({products / 1e12:,.1f} TFLOP/s on {processes} × {device.type}), "
            "measured\n"
            f"  time: {measured.seconds_per_step:.2f} s a step, "
            f"{measured.tokens_per_second:,.0f} tokens/s, measured; "
            f"{duration(seconds)} for all, without evaluation"
        )

    def replay(self, step: int) -> None:
        """Prints the rows of a step with the masks that the model saw, or would see.

        Raises:
            RunConfigError: if the stage has no such step.
        """
        from pretraining.inspect_rows import show_as_masked  # brings matplotlib with it

        if not 0 <= step < self.steps:
            raise RunConfigError(
                f"--replay {step}: stage {self.number} has the steps 0 to {self.steps - 1}."
            )
        collator = self.collator()
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        backend = self.tokenizer.backend_tokenizer
        print(f"stage {self.number}, step {step}: mask rate {self.mask_rate(step):.2%}")
        for position in self.order.positions(step):
            row = self.order.row_index(position)
            if row is None:  # left empty while the batch warms up
                continue
            print(f"\nposition {position}:")
            feature = {"row": self.rows[row], "position": position, "step": step}
            print(show_as_masked(self.rows, row, feature, backend, collator, True, colour))

    def _summary(self, model: ChineseModernBertForMaskedLM, checkpoint: str | None) -> str:
        rows = self.order.drawn_before(self.steps)
        tokens = rows * self.rows.seq_len
        growing = ", fewer rows at first" if self.stage.batch_warmup else ""
        start = checkpoint or self.source or "fresh weights"
        autocast = self.training_arguments.bf16 or self.training_arguments.fp16
        dtype = torch.bfloat16 if autocast else model.dtype
        backend, reason = choose_attention(
            model.config._attn_implementation, self.training_arguments.device, dtype
        )
        return (
            f"stage {self.number}: {model.num_parameters() / 1e6:.1f} M parameters, from {start}\n"
            f"  {self.steps:,} steps × {self.rows_per_step} rows × {self.rows.seq_len} tokens"
            f"{growing} = {tokens:,} positions, {rows / len(self.rows):.2f} epochs of "
            f"{self.stage.train_rows}\n"
            f"  attention: {backend} ({reason})"
        )


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    Trainer writes trainer_state.json last, so one that is missing or cut off tells of a checkpoint
    that a kill left half-written.
    """
    checkpoints = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True
    )
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            print(f"{checkpoint} is incomplete, looking for the one before it")
    return None


def evaluated_at_the_end(state) -> bool:
    """Whether the last step was evaluated."""
    return any(
        "eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history
    )


if __name__ == "__main__":
    faulthandler.enable()  # a disk that fails under memory-mapped rows ends a process by a signal
    main()
