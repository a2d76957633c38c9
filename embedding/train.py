"""Trains sentence vectors, or a model that scores pairs, as a run file says.

    python -m embedding.train configs/embedding/simclue.yaml [seed=1 output=runs/embedding/seed-1]

Keys of run files: `embedding/run_file.py`. While it runs, OUTPUT.run holds checkpoints and the log;
killed, it goes on from the last checkpoint when started again. At the end OUTPUT appears, complete:
`SentenceTransformer(OUTPUT, trust_remote_code=True)` opens it, or `CrossEncoder` or
`MultiVectorEncoder` for the architectures of that name.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import BatchSampler, RandomSampler
from transformers import TrainingArguments, set_seed

from embedding.architectures import ARCHITECTURES
from embedding.bag_of_words import leave_layers_out, put_words_beside, start_as_bag_of_words
from embedding.data import limited, load_task
from embedding.encoder import DTYPES, Opening
from embedding.held_out import HeldOut
from embedding.losses import loss_for
from embedding.neighbors import groups_of_neighbors
from embedding.results import fingerprint
from embedding.run_file import RunFile, TaskSpec, load_run_file
from embedding.student import keep_layers, whiten, widen_vectors
from embedding.teacher import read_note, read_teacher
from embedding.unpadded import lay_end_to_end
from pretraining.command import readable_errors
from pretraining.files import check_output, new_folder, read_json, sha256_of, write_json
from pretraining.run.complete_checkpoints import last_complete_checkpoint

# Column names per kind are those of `embedding.data`; these hold no text.
LABELS = ("score", "label")


def work_folder(run: RunFile) -> Path:
    """Where checkpoints and the log of a run are."""
    return run.output.with_name(f"{run.output.name}.run")


def digest_of(run: RunFile) -> str:
    """What must be the same for a run to go on: the run file, the model's weights, the data."""
    parts = [repr(dataclasses.replace(run, output=Path())), fingerprint(Opening.of(run.model))]
    if run.word_vectors:
        parts.append(repr(read_note(run.word_vectors)))
    for task in run.tasks:
        if task.teacher:
            parts.append(repr(read_note(task.teacher)))
        parts += [f"{file} {sha256_of(file)}" for file in task.files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prepare_work(run: RunFile) -> str | None:
    """Makes the work folder, or finds the checkpoint to go on from.

    Raises:
        ValueError: if the folder belongs to a run of other settings or data, or holds something
            else: at the end it is removed.
    """
    folder, digest = work_folder(run), digest_of(run)
    note = folder / "run.json"
    if not note.exists():
        check_output(folder)
        write_json(note, {"digest": digest})
        return None
    if read_json(note)["digest"] != digest:
        raise ValueError(
            f"{folder} holds a run of other settings or data. Remove it to start anew, or name "
            "another output."
        )
    return last_complete_checkpoint(folder)


def load_data(run: RunFile) -> tuple[dict[str, Dataset], dict[str, object]]:
    """The rows of all tasks, and the teachers' vectors of those that have them.

    Raises:
        OSError, ValueError: if something cannot be used; the message names file, line and remedy.
    """
    held_out = HeldOut(run.exclude) if run.exclude else None
    rows, vectors = {}, {}
    for task in run.tasks:
        if task.teacher:
            sentences, vectors[task.name] = read_teacher(task.teacher)
            kept = [
                place
                for place, sentence in enumerate(sentences)
                if held_out is None or not held_out.holds(sentence)
            ]
            if task.kind == "neighbors":
                rows[task.name] = _groups(task, run.seed, sentences, vectors[task.name], kept)
            else:
                texts = {"sentence": [sentences[place] for place in kept], "label": kept}
                rows[task.name] = limited(Dataset.from_dict(texts), task, run.seed)
            dropped = len(sentences) - len(kept)
        else:
            loaded = load_task(task, run.seed, held_out)
            rows[task.name], dropped = loaded.rows, loaded.dropped
        note = f", {dropped:,} dropped for a text of the test sets" if held_out else ""
        print(f"{task.name}: {len(rows[task.name]):,} rows{note}", flush=True)
    return rows, vectors


def _groups(
    task: TaskSpec, seed: int, sentences: list[str], vectors: np.ndarray, kept: list[int]
) -> Dataset:
    """Groups of near texts, one a row; `label` holds the rows of their vectors."""
    texts = [sentences[place] for place in kept]
    groups = groups_of_neighbors(texts, vectors[kept], task.limit, seed)
    columns = {f"text_{n}": [texts[place] for place in places] for n, places in enumerate(groups.T)}
    return Dataset.from_dict(columns | {"label": np.asarray(kept)[groups].tolist()})


def row_texts(rows: Dataset) -> list[str]:
    """All texts of a task's rows, column by column."""
    columns = [column for column in rows.column_names if column not in LABELS]
    return [text for column in columns for text in rows[column]]


class DistinctTexts(NoDuplicatesBatchSampler):
    """Batches in which no text is twice, as many as it takes to see all rows.

    The library ends an epoch after rows / batch size, which is too soon if a few answers stand in
    most rows: a batch then holds few of them. It needs as many batches as the commonest text rows.
    """

    def __init__(self, dataset: Dataset, **options):
        super().__init__(dataset, **options)
        rows = zip(*(self.dataset[column] for column in self.dataset.column_names), strict=True)
        counts = Counter(text for row in rows for text in set(row))
        self._commonest = max(counts.values(), default=0)

    def __len__(self) -> int:
        return max(super().__len__(), self._commonest)


def sampler_for(dataset: Dataset, **options) -> BatchSampler:
    """Rows without labels are contrasted within the batch, so no text may be in it twice."""
    if any(column in dataset.column_names for column in LABELS):
        shuffled = RandomSampler(dataset, generator=options["generator"])
        return DefaultBatchSampler(shuffled, **options)
    return DistinctTexts(dataset, **options)


def arguments_for(run: RunFile, rows: dict[str, Dataset]) -> TrainingArguments:
    """The trainer's arguments.

    Raises:
        ValueError: if one of the run file's has a wrong value.
    """
    prompts = {}
    for task in run.tasks:
        texts = [column for column in rows[task.name].column_names if column not in LABELS]
        names = task.prompts or ()
        # The last prompt is that of all candidates.
        padded = [*names, *(names[-1:] * (len(texts) - len(names)))]
        prompts[task.name] = {
            column: run.prompts[name] for column, name in zip(texts, padded, strict=False)
        }
    defaults = {
        "save_total_limit": 2,
        "report_to": "none",
        "logging_steps": 50,
        # bf16 is refused on a machine without an accelerator, unless the CPU is named.
        "use_cpu": not torch.accelerator.is_available(),
    }
    try:
        return ARCHITECTURES[run.architecture].arguments(
            **{**defaults, **run.training},
            output_dir=str(work_folder(run)),
            seed=run.seed,
            prompts={name: columns for name, columns in prompts.items() if columns} or None,
            multi_dataset_batch_sampler=run.turns,
            batch_sampler=sampler_for,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}") from error


def train(run: RunFile) -> BaseModel:
    """Trains, or goes on with, a run, and writes its output folder.

    Raises:
        OSError, ValueError: before training, if something cannot be used.
    """
    check_output(run.output)
    words = read_teacher(run.word_vectors) if run.word_vectors else None
    rows, vectors = load_data(run)
    texts = list(itertools.chain(*map(row_texts, rows.values())))
    arguments = arguments_for(run, rows)
    set_seed(run.seed)
    opening = Opening.of(run.model, dtype="fp32")
    if opening.dimensions is not None:
        raise ValueError(f"model: {run.model}: all dimensions are trained; leave @… out.")
    model = opening.open(run.architecture)
    if run.architecture == "bi_encoder":
        model.truncate_dim = None
    _check_encoder(run, model)
    if run.layers is not None:
        keep_layers(model, run.layers)
    if run.start == "words":
        put_words_beside(model, run.vector_size, run.word_size)
        start_as_bag_of_words(model, texts, words)
    elif run.vector_size is not None:
        widen_vectors(model, run.vector_size)
    if run.architecture == "bi_encoder" and not any(isinstance(each, Normalize) for each in model):
        model.append(Normalize())  # the product of two vectors is their cosine
    model.prompts.update(run.prompts)
    if run.whiten:
        whiten(model, texts)
    losses = {
        task.name: loss_for(task, model, run.dimensions, vectors.get(task.name))
        for task in run.tasks
    }
    _check_patterns(run, model)
    checkpoint = prepare_work(run)
    if not run.train_layers:
        leave_layers_out(model)
    if not run.train_embeddings:
        model[0].auto_model.get_input_embeddings().requires_grad_(False)
    if run.compile:
        model[0].auto_model.compile(dynamic=True)  # every batch has another number of tokens
    trainer = ARCHITECTURES[run.architecture].trainer(
        model=model, args=arguments, train_dataset=rows, loss=losses
    )
    if run.architecture == "bi_encoder" and trainer.args.n_gpu < 2:  # DataParallel divides rows
        lay_end_to_end(model)
    if checkpoint:
        print(f"goes on from {checkpoint}", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    save(run, model, trainer.state.log_history)
    return model


def _check_encoder(run: RunFile, model: BaseModel) -> None:
    """Refuses what changes an encoder where there is none.

    Raises:
        ValueError: naming the key.
    """
    keys = ("layers", "vector_size", "start", "whiten", "compile")
    asked = [key for key in keys if getattr(run, key)]
    asked += [] if run.train_embeddings else ["train_embeddings"]
    if asked and not hasattr(model[0], "auto_model"):
        raise ValueError(
            f"{asked[0]}: {run.model} is a {type(model[0]).__name__}, which has no layers. Leave "
            "it out."
        )


def _check_patterns(run: RunFile, model: BaseModel) -> None:
    """The library passes over a pattern that no parameter matches, and trains all at one rate.

    Raises:
        ValueError: if there is one.
    """
    names = [f"model.{name}" for name, _ in model.named_parameters()]  # as the losses name them
    for pattern in run.training.get("learning_rate_mapping") or {}:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"training.learning_rate_mapping: no parameter matches {pattern!r}. They are named "
                f"like {names[0]} and {names[-1]}."
            )


def save(run: RunFile, model: BaseModel, log: list[dict]) -> None:
    """Writes the output folder: the model, the run and its log."""
    model.to(DTYPES[run.dtype])
    with new_folder(run.output) as folder:
        model.save_pretrained(str(folder), create_model_card=False)
        # Opened in fp32 however it is stored: on many CPUs bf16 is far slower.
        if (config := folder / "config.json").is_file():
            write_json(config, read_json(config) | {"dtype": "float32"})
        write_json(folder / "training_run.json", {"run": as_plain(run), "log": log})


def as_plain(run: RunFile) -> dict:
    """The run for JSON, paths as text."""
    return json.loads(json.dumps(dataclasses.asdict(run), default=str))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="in the run file's place")
    args = parser.parse_args()
    with readable_errors("train"):
        run = load_run_file(args.run, args.overrides)
        train(run)
    shutil.rmtree(work_folder(run), ignore_errors=True)
    print(f"{run.output} is ready")


if __name__ == "__main__":
    main()
