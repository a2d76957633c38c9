"""Fine-tunes models on tasks and prints one table.

    python -m finetuning.clue RUN.yaml
    python -m finetuning.clue --model . random:. characters majority --tasks tnews ocnli \\
        --seeds 5 --data FOLDER --output FOLDER

RUN.yaml has the keys `models`, `tasks`, `data`, `output`, `seeds`, `save_models`, `compile` and
sizes such as `train_examples`; options on the command line take their place, and tasks named there
keep the settings that the file has for them. Each run (a model, a task, a seed and a rate) leaves a
JSON file with its settings and scores, and beside it a JSONL file with its predictions. A run whose
JSON file is there is not run again. One that was interrupted starts over from its seed.

On the first seed every rate of the task's grid is tried; the rate with the best dev is kept for the
other seeds.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm
from transformers import AutoConfig

from finetuning.baselines import BASELINE_HEADS, BASELINES, baseline
from finetuning.models import environment, open_tokenizer
from finetuning.plan import Plan, read_plan
from finetuning.predictions import write_predictions
from finetuning.results import (
    best_of,
    changed_environment,
    changed_settings,
    collect,
    line,
    table,
)
from finetuning.splits import Split, check_metric, describe, load, subset
from finetuning.tasks import LIMITED, Task
from finetuning.training import SETTINGS_FILE, WARMUP, WEIGHT_DECAY, Run, check_context, train
from pretraining.command import readable_errors
from pretraining.files import read_json, write_json
from pretraining.machine import default_device


def run(plan: Plan) -> list[dict]:
    """Runs what is not done yet, with one bar and a line a run, and returns all results.

    Raises:
        FileNotFoundError, ValueError: on bad tasks or data or a model without tokenizer, before
            any run begins; or if a result file was made with other settings, or a model folder
            changes between two runs.
    """
    for model in plan.models:
        if model.source not in BASELINES:
            tokenizer = open_tokenizer(model.folder)
            config = AutoConfig.from_pretrained(model.folder, trust_remote_code=True)
            for task in plan.tasks:
                check_context(task, config, tokenizer)
    loaded = []
    for task in plan.tasks:
        task, splits = load(task, plan.data)
        print(describe(task, splits))
        for part in LIMITED:
            if part in splits:
                splits[part] = subset(splits[part], getattr(task, f"{part}_examples"), task.blanks)
        check_metric(task, splits)
        loaded.append((task, splits))
    pairs = [
        (model, task, splits)
        for task, splits in loaded
        for model in plan.models
        if model.source not in BASELINES or task.head in BASELINE_HEADS
    ]
    total = sum(
        1 if model.source in BASELINES else len(task.learning_rates) + plan.seeds - 1
        for model, task, _ in pairs
    )
    results = []
    with tqdm(total=total, unit="run") as bar:
        for model, task, splits in pairs:
            for result in _results(plan, model, task, splits, bar):
                results.append(result)
                tqdm.write(line(result))
                bar.update()
    return results


def _results(plan: Plan, model, task: Task, splits: dict[str, Split], bar) -> Iterator[dict]:
    def result(seed: int | None, rate: float | None) -> dict:
        bar.set_description(f"{task.name} {model.name}")
        return _result(plan, model, task, splits, seed, rate, bar.set_postfix_str)

    if model.source in BASELINES:
        yield result(None, None)
        return
    tried = []
    for rate in task.learning_rates:
        tried.append(result(0, rate))
        yield tried[-1]
    for seed in range(1, plan.seeds):
        yield result(seed, best_of(tried)["settings"]["learning_rate"])


def _result(plan: Plan, model, task, splits, seed, rate, report) -> dict:
    """The result of a run, from its file if that is there."""
    name = "result" if seed is None else f"seed-{seed}-rate-{rate:g}"
    file = plan.output / model.file_name / task.name / f"{name}.json"
    settings = _settings(plan, model, task, splits, seed, rate)
    saved = file.with_suffix("")
    folder = saved if plan.save_models and seed is not None else None
    if file.exists():
        result = read_json(file)
        changed = changed_settings(result["settings"], settings)
        if seed is not None:
            here = environment(default_device()) | {"compiled": plan.compile}
            changed += changed_environment(result, here)
        if changed:
            raise ValueError(
                f"{file}: was made with other settings ({', '.join(changed)}); remove it to run it "
                "again, or choose another --output."
            )
        # Baselines and models that are saved answer the hidden test, which may have come later.
        answers_hidden = seed is None or plan.save_models
        new_hidden = "hidden" in settings["files"] and any(
            result["settings"][part].get("hidden") != settings[part]["hidden"]
            for part in ("files", "examples")
        )
        is_saved = folder is None or (folder / SETTINGS_FILE).exists()
        if is_saved and not (new_hidden and answers_hidden):
            return result
    if seed is None:
        result = baseline(model.source, task, splits)
    else:
        if model.fingerprint() != plan.fingerprints[model.name]:
            raise ValueError(
                f"{model.folder} has changed since this command began; name a copy of it that "
                "nobody writes to."
            )
        shutil.rmtree(saved, ignore_errors=True)  # of an earlier run, whose result is gone
        result = train(Run(task, model, seed, rate, plan.compile), splits, folder, report)
    write_predictions(file, result.pop("predictions"))
    result = {"settings": settings, **result}
    write_json(file, result)
    return result


def _settings(plan: Plan, model, task: Task, splits, seed, rate) -> dict:
    """What a result depends on."""
    fields = {
        field.name: getattr(task, field.name)
        for field in dataclasses.fields(task)
        if field.name not in ("name", "read", "splits", "copies", "learning_rates", "source")
    }
    return {
        "task": task.name,
        "model": model.name,
        "model_source": model.source,
        "protocol": task.source,
        "model_files": plan.fingerprints[model.name],
        "seed": seed,
        "learning_rate": rate,
        "warmup": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "files": {part: list(split.files) for part, split in splits.items()},
        "examples": {part: len(split.examples) for part, split in splits.items()},
        "content": {part: split.digest for part, split in splits.items()},
        "unused": {part: dict(split.skipped) for part, split in splits.items() if split.skipped},
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        },
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.clue",
        description="Fine-tunes models on tasks, several seeds each, and prints a table.",
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN.yaml", help="what to run")
    parser.add_argument(
        *("--model", "--models"),
        nargs="+",
        dest="models",
        help="folders or Hub names; random:FOLDER has its architecture from random weights; "
        "majority and characters need none; NAME=MODEL names it in the table",
    )
    parser.add_argument("--tasks", nargs="+", help="names of tasks (see finetuning/tasks.py)")
    parser.add_argument("--data", help="folder of the tasks' files")
    parser.add_argument("--output", help="folder for the results")
    parser.add_argument("--seeds", type=int, help="seeds per task and model (5)")
    parser.add_argument("--train_examples", type=int, help="a fixed subset of train (all)")
    parser.add_argument("--dev_examples", type=int, help="a fixed subset of dev (all)")
    parser.add_argument("--test_examples", type=int, help="a fixed subset of test (all)")
    parser.add_argument(
        "--save_models",
        action="store_true",
        default=None,
        help="keep the fine-tuned models, and let them answer the hidden tests",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="compile the models, for runs of minutes; needs a C++ compiler on a CPU",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    import transformers

    options = vars(parse(arguments))
    # One bar and one line a run: no bars of loading weights, no reports of new heads.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with readable_errors("clue"):
        plan = read_plan(options.pop("run"), options)
        run(plan)
        print(table(collect(plan.output)))


if __name__ == "__main__":
    main()
