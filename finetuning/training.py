"""One run: a model is fine-tuned on a task with a seed and a rate, and its predictions are scored.

After each epoch dev is scored; the weights of the best epoch are kept, and training ends when dev
has not improved for `task.patience` epochs.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from finetuning.heads import HEADS
from finetuning.models import Model, bf16_is_fast, environment
from finetuning.spans import clear_caches
from finetuning.splits import Split
from finetuning.tasks import Task
from pretraining.files import write_json
from pretraining.machine import default_device

SETTINGS_FILE = "task.json"  # of a fine-tuned folder
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 0.01
# Tokens of a batch when predicting, padding included: 4 MiB of a layer of 256 in fp32.
PREDICTION_TOKENS = 4096


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
        task, model: what is learned, and by which model.
        seed: of the head's weights, the order of the examples and dropout.
        learning_rate: the highest one; it rises for a tenth of the steps and falls to 0.
        compile: whether the encoder is compiled, which needs a C++ compiler on a CPU.
    """

    task: Task
    model: Model
    seed: int
    learning_rate: float
    compile: bool = False


@dataclass
class Progress(TrainerCallback):
    """Scores dev after each epoch, keeps the best weights and stops training.

    Attributes:
        score: (model) -> scores of dev and its predictions.
        metric: the score that counts.
        patience: epochs without a better one.
        report: called with a text after each epoch.
    """

    score: Callable
    metric: str
    patience: int
    report: Callable[[str], None]
    history: list[dict] = field(default_factory=list)
    best: int = -1
    weights: dict = field(default_factory=dict)
    predictions: list = field(default_factory=list)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        scores, predictions = self.score(model)
        self.history.append(scores)
        if self.best < 0 or scores[self.metric] > self.history[self.best][self.metric]:
            self.best, self.predictions = len(self.history) - 1, predictions
            self.weights = copy.deepcopy(model.state_dict())
        self.report(f"epoch {len(self.history)}: {scores[self.metric]:.1%}")
        if len(self.history) - 1 - self.best >= self.patience:
            control.should_training_stop = True
        model.train()
        return control


def train(
    run: Run, splits: dict[str, Split], folder: Path | None = None, report=lambda text: None
) -> dict:
    """Fine-tunes a model and scores it.

    Args:
        splits: those of `finetuning.splits.load`.
        folder: where to save the fine-tuned model; None saves nothing and leaves the hidden test
            unanswered.
        report: called with a short text after each epoch.

    Returns:
        What a result file holds: scores and predictions of dev, of test if there is one, and
        predictions of hidden if the model is saved; the loss of training (None if it was not
        finite), the history of dev, what was cut or could not be represented, seconds, and the
        environment.

    Raises:
        ValueError: on examples that cannot be inputs, or inputs longer than the model's context.
    """
    began = time.perf_counter()
    task, head = run.task, HEADS[run.task.head]
    if folder is None:
        splits = {name: split for name, split in splits.items() if name != "hidden"}
    settings = head.settings(task)
    classes = head.classes(settings)
    model, tokenizer = run.model.build(head, classes, run.seed)
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # rows have all inputs
    check_context(task, model.config, tokenizer)
    place = default_device()
    model.to(place)
    inputs = {
        name: head.features(split.examples, tokenizer, settings, training=name == "train")
        for name, split in splits.items()
    }
    clear_caches()  # every text is encoded now
    if not inputs["train"][0]:
        raise ValueError(f"{task.name}: no example of train can be learned from; see its answers.")
    collator = head.collator_of(tokenizer)

    def predict(name: str, model) -> list:
        rows, decoding = inputs[name]
        return head.decode_rows(outputs(model, rows, collator, head.outputs), decoding)

    def score_dev(model) -> tuple[dict, list]:
        found = predict("dev", model)
        return head.score(splits["dev"].examples, found), found

    progress = Progress(score_dev, task.metric, task.patience, report)
    loss = fit(run, model, collator, inputs["train"][0], [progress])
    model.load_state_dict(progress.weights)

    scores = {"dev": progress.history[progress.best]}
    predictions = {"dev": progress.predictions}
    for name in splits.keys() & {"test", "hidden"}:
        predictions[name] = predict(name, model)
        if name == "test":
            scores[name] = head.score(splits[name].examples, predictions[name])
    if folder:
        save(model, tokenizer, task, folder)
    return {
        "scores": scores,
        "loss": loss,
        "history": progress.history,
        "best_epoch": progress.best + 1,
        "inexact": {name: dict(decoding.inexact) for name, (_, decoding) in inputs.items()},
        "rows": {name: len(rows) for name, (rows, _) in inputs.items()},
        "seconds": round(time.perf_counter() - began, 1),
        **environment(place),
        "compiled": run.compile,
        "predictions": {
            name: [
                [example["id"], head.present(example, found)]
                for example, found in zip(splits[name].examples, predictions[name], strict=True)
            ]
            for name in predictions
        },
    }


class GroupedTrainer(Trainer):
    """Groups rows by their tokens. Trainer itself would take the number of choices for the length.

    Attributes:
        lengths: tokens of each row.
    """

    lengths: list[int]

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self.lengths)


def check_context(task: Task, config: PreTrainedConfig, tokenizer) -> None:
    """Refuses inputs that are longer than a model's context.

    Raises:
        ValueError: if the task's `max_length` is.
    """
    # RoBERTa's configuration counts two positions that no token has; XLNet has -1 for "any".
    positions = getattr(config, "max_position_embeddings", None)
    known = [n for n in (positions, tokenizer.model_max_length) if n and n > 0]
    context = min(known, default=task.max_length)
    if task.max_length > context:
        raise ValueError(
            f"{task.name}: max_length {task.max_length} is more than the model's context of "
            f"{context}; lower max_length."
        )


def fit(
    run: Run, model, collator, rows: list[dict], callbacks: list[TrainerCallback]
) -> float | None:
    """Trains a model on rows of inputs, at most `run.task.epochs` epochs.

    Returns:
        The mean loss, None if it was not finite.
    """
    task, place = run.task, next(model.parameters()).device
    if run.compile:
        # Not the head, which would be compiled anew for each number of classes. Every batch has
        # another number of tokens.
        model.base_model.compile(dynamic=True)
    data = Dataset.from_list(rows)
    steps = math.ceil(len(rows) / task.batch_size) * task.epochs
    with tempfile.TemporaryDirectory() as unused:
        arguments = TrainingArguments(
            output_dir=unused,
            per_device_train_batch_size=task.batch_size,
            num_train_epochs=task.epochs,
            learning_rate=run.learning_rate,
            warmup_steps=round(steps * WARMUP),
            weight_decay=WEIGHT_DECAY,
            bf16=bf16_is_fast(place),
            use_cpu=place.type == "cpu",
            seed=run.seed,
            logging_strategy="no",
            logging_nan_inf_filter=False,  # else a run that diverged has a fine loss
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        if arguments.n_gpu > 1:  # a batch is `batch_size` examples, as the result says
            arguments._n_gpu = 1
        trainer = GroupedTrainer(model, arguments, collator, data, callbacks=callbacks)
        trainer.lengths = list(map(_length, rows))
        trainer.remove_callback(transformers.PrinterCallback)
        loss = trainer.train().training_loss
    return loss if math.isfinite(loss) else None


def _length(row: dict) -> int:
    """Tokens of a row, of all its choices together."""
    ids = row["input_ids"]
    return sum(map(len, ids)) if isinstance(ids[0], list) else len(ids)


@torch.inference_mode()
def outputs(model, rows: list[dict], collator, names: tuple[str, ...]) -> list[tuple]:
    """The model's outputs for each row: a tuple of arrays, one for each of `names`.

    Rows are batched by length, so that little of a batch is padding.
    """
    place = next(model.parameters()).device
    model.eval()
    found: list[tuple] = [()] * len(rows)
    for batch in _batches([_length(row) for row in rows]):
        tensors = collator([dict(rows[index]) for index in batch])  # it may take labels out
        tensors = {name: value.to(place) for name, value in tensors.items() if name != "labels"}
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16_is_fast(place)):
            output = model(**tensors)
        columns = [output[name].float().cpu().numpy() for name in names]
        for index, *values in zip(batch, *columns, strict=True):
            found[index] = tuple(np.array(value) for value in values)
    return found


def _batches(lengths: list[int]) -> list[list[int]]:
    """Indices by batch, longest first."""
    batches, order = [], sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        count = max(PREDICTION_TOKENS // max(lengths[order[0]], 1), 1)
        batches.append(order[:count])
        order = order[count:]
    return batches


def save(model, tokenizer, task: Task, folder: Path) -> None:
    """Saves a fine-tuned model, its tokenizer, and for `finetuning.predict` how it was trained."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = (
        *("name", "head", "labels", "max_length", "choices", "blanks", "borders"),
        "longest_answer",
    )
    write_json(folder / SETTINGS_FILE, {field: getattr(task, field) for field in fields})
