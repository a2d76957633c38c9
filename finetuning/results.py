"""Results of `finetuning.clue`: a table, a page, and what a model card says about them.

    python -m finetuning.results FOLDER --page PAGE.md
    python -m finetuning.results FOLDER --model NAME --card REPOSITORY

The second writes `model-index` into the card of REPOSITORY and `.eval_results/clue.yaml` beside it,
the Hub's older and newer form.
"""

import argparse
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from finetuning.tasks import LIMITED
from pretraining.command import readable_errors
from pretraining.files import read_json, read_text, write_text

# On dev, in percent, as their makers report them: PaddleNLP's page of ERNIE 3.0, and the README of
# iflytek/MiniRBT. Both were trained on all of CLUE's train.
PUBLISHED = {
    "ERNIE-3.0 Nano": {
        "afqmc": {"accuracy": 70.51},
        "tnews": {"accuracy": 54.57},
        "iflytek": {"accuracy": 48.36},
        "cmnli": {"accuracy": 74.97},
        "ocnli": {"accuracy": 70.61},
        "cluewsc2020": {"accuracy": 68.75},
        "csl": {"accuracy": 75.93},
        "cmrc2018": {"exact_match": 52.0, "f1": 76.4},
        "chid": {"accuracy": 58.91},
        "c3": {"accuracy": 55.11},
    },
    "MiniRBT-h256": {
        "ocnli": {"accuracy": 68.73},
        "tnews": {"accuracy": 54.45},
        "cmrc2018": {"exact_match": 56.3, "f1": 78.5},
        "drcd": {"exact_match": 78.6, "f1": 86.8},
    },
}
# What published scores were trained on where the files that we read hold less.
LARGER_TRAIN = {"ocnli": "50k of train"}
HIDDEN_SCORES = ("precision", "recall")  # in the files, not in the table
_CARD_TASKS = {
    "classification": "text-classification",
    "tokens": "token-classification",
    "answers": "question-answering",
    "choices": "multiple-choice",
}


@dataclass(frozen=True)
class Summary:
    """The results of a model on a task, all seeds at the rate that was best on the first.

    Attributes:
        settings: of its first result.
        scores: values of each seed, by (split, score), from 0 to 1.
        first: the first result.
    """

    settings: dict
    scores: dict[tuple[str, str], list[float]]
    first: dict


def collect(folder: Path) -> list[dict]:
    """All results of a folder, with the `file` of each.

    Raises:
        ValueError: if there are none.
    """
    results = [read_json(file) | {"file": str(file)} for file in sorted(folder.glob("*/*/*.json"))]
    if not results:
        raise ValueError(f"{folder}: holds no results; name the --output of finetuning.clue.")
    return results


def line(result: dict) -> str:
    """A result in one line."""
    settings = result["settings"]
    parts = [settings["task"], settings["model"]]
    if settings["seed"] is not None:
        parts += [f"seed {settings['seed']}", f"rate {settings['learning_rate']:g}"]
    for split, scores in result["scores"].items():
        parts.append(f"{split} {settings['metric']} {scores[settings['metric']]:.1%}")
    if "best_epoch" in result:
        parts.append(f"epoch {result['best_epoch']} of {len(result['history'])}")
        if result["loss"] is None:
            parts.append("DIVERGED")
    return ", ".join([*parts, f"{result['seconds']:.0f} s"])


def best_of(results: list[dict]) -> dict:
    """Of results on a task the best on dev; of equals, that of the lowest rate."""

    def merit(result: dict) -> tuple[float, float]:
        settings = result["settings"]
        return result["scores"]["dev"][settings["metric"]], -(settings["learning_rate"] or 0)

    return max(results, key=merit)


def changed_settings(old: dict, new: dict) -> list[str]:
    """Names of the settings that change a result and differ; seeds and rates are not compared, nor
    is the hidden test."""
    of_no_effect = {"protocol", "hub", "seed", "learning_rate"}
    if new.get("model_files"):  # a folder may move; a name on the Hub is all that is known of it
        of_no_effect.add("model_source")
    # Files, too, may move as long as they hold the same; the first results do not tell.
    of_no_effect.add("files" if "content" in old and "content" in new else "content")
    old, new = map(_without_hidden, (old, new))
    keys = [key for key in (*new, *(old.keys() - new.keys())) if key not in of_no_effect]
    return [key for key in keys if old.get(key) != new.get(key)]


def _without_hidden(settings: dict) -> dict:
    return {
        name: {part: each for part, each in value.items() if part != "hidden"}
        if isinstance(value, dict)
        else value
        for name, value in settings.items()
    }


def changed_environment(old: dict, new: dict) -> list[str]:
    """Names of what changes figures a little though no setting differs: device, type, versions."""
    old, new = map(_environment, (old, new))
    return [key for key in old | new if old.get(key) != new.get(key)]


def _environment(result: dict) -> dict:
    """Empty for baselines."""
    if "device" not in result:
        return {}
    device = result["device"].partition(":")[0]
    compiled = result.get("compiled", False)
    return {
        "device": device,
        "dtype": result["dtype"],
        "compiled": compiled,
        **result["versions"],
    }


def _check_alike(group: list[dict]) -> None:
    """Refuses to average what was measured with unlike settings or in unlike environments."""
    first, *others = group
    for one in others:
        changed = [
            *changed_settings(first["settings"], one["settings"]),
            *changed_environment(first, one),
        ]
        if changed:
            raise ValueError(
                f"{first['file']} and {one['file']} were made with different settings "
                f"({', '.join(changed)}) and have no common mean; remove what is out of date."
            )


def summarize(results: list[dict]) -> list[Summary]:
    """One summary a model and task, sorted by task.

    Raises:
        ValueError: if those of a model and task were made with unlike settings, types, devices or
            versions, its first seed is missing or better at another rate than the others have; or
            if models were not measured on the same examples.
    """
    groups = defaultdict(list)
    for result in results:
        groups[result["settings"]["task"], result["settings"]["model"]].append(result)
    examples: dict[str, dict] = {}
    content: dict[str, dict] = {}
    summaries = []
    for (task, model), group in sorted(groups.items()):
        _check_alike(group)
        settings = _without_hidden(group[0]["settings"])
        given = settings["examples"]
        if examples.setdefault(task, given) != given:
            raise ValueError(
                f"{task}: {model} was not given the examples that the others had; run it again "
                "with the same train_examples, dev_examples and test_examples."
            )
        # The first results do not tell what the examples were.
        texts = settings.get("content")
        if texts and content.setdefault(task, texts) != texts:
            raise ValueError(
                f"{task}: {model} and another model were given other texts or labels; remove the "
                "results of the older one and run it again."
            )
        tried = [one for one in group if not one["settings"]["seed"]]
        if not tried:
            raise ValueError(f"{task}, {model}: the results of seed 0 are missing; run it again.")
        first = best_of(tried)
        rate = first["settings"]["learning_rate"]
        for one in group:
            if one["settings"]["seed"] and one["settings"]["learning_rate"] != rate:
                raise ValueError(
                    f"{one['file']}: seed 0 is better at the rate {rate:g}; remove this file and "
                    "run the other seeds at that rate, or remove seed 0's result at it."
                )
        scores = defaultdict(list)
        for one in group:
            if one["settings"]["learning_rate"] == rate:
                for split, values in one["scores"].items():
                    for name, value in values.items():
                        scores[split, name].append(value)
        summaries.append(Summary(first["settings"], dict(scores), first))
    return summaries


def table(results: list[dict]) -> str:
    """Mean ± standard deviation of the seeds in percent, a row for each task, split and score.

    Test comes before dev, which chose epoch and rate. Published scores stand beside dev where all
    of train and dev were used.
    """
    summaries = summarize(results)
    models = sorted({summary.settings["model"] for summary in summaries}, key=_rank)
    values = {
        (summary.settings["task"], summary.settings["model"]): summary for summary in summaries
    }
    tasks = list(dict.fromkeys(summary.settings["task"] for summary in summaries))
    whole = {
        summary.settings["task"]
        for summary in summaries
        if not any(_limit(summary.settings, part) for part in ("train", "dev"))
    }
    published = [name for name in PUBLISHED if PUBLISHED[name].keys() & whole]
    rows = [["task", "split", "score", *models, *(f"{name} (published)" for name in published)]]
    for task in tasks:
        of_task = [values[task, model] for model in models if (task, model) in values]
        keys = dict.fromkeys(key for summary in of_task for key in summary.scores)
        for split, score in sorted(keys, key=lambda key: key[0] != "test"):
            if score in HIDDEN_SCORES:
                continue
            cells = [
                mean(values[task, model].scores.get((split, score)))
                if (task, model) in values
                else "–"
                for model in models
            ]
            compares = split == "dev" and task in whole
            cells += [_published(name, task, score) if compares else "–" for name in published]
            rows.append([_named(of_task[0], task, "train"), _named(of_task[0], split, split)])
            rows[-1] += [score.replace("_", " "), *cells]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _published(name: str, task: str, score: str) -> str:
    """A published score, and what it was trained on if that is more than what we have."""
    value = PUBLISHED[name].get(task, {}).get(score)
    more = f" ({LARGER_TRAIN[task]})" if task in LARGER_TRAIN else ""
    return "–" if value is None else f"{value:.1f}{more}"


def _named(summary: Summary, name: str, part: str) -> str:
    """A name, and how many examples of a split there are if it is a subset."""
    limit = _limit(summary.settings, part)
    return f"{name} ({limit:,} of {part})" if limit else name


def _limit(settings: dict, part: str) -> int | None:
    """How many examples a split was cut down to, if it was."""
    limit = settings.get(f"{part}_examples")
    return limit if limit == settings["examples"].get(part) else None


def _rank(model: str) -> tuple[int, str]:
    """Pretrained models first, then random weights, then baselines."""
    if model in ("characters", "majority"):
        return 2, model
    return int("random" in model), model


def mean(values: list[float] | None) -> str:
    """Mean ± sample standard deviation in percent, and how many values."""
    if not values:
        return "–"
    average = 100 * statistics.fmean(values)
    if len(values) == 1:
        return f"{average:.1f}"
    return f"{average:.1f} ± {100 * statistics.stdev(values):.1f} ({len(values)})"


def page(results: list[dict]) -> str:
    """The table, and below it what each figure was measured on."""
    summaries = summarize(results)
    notes = []
    for summary in summaries:
        settings = summary.settings
        sizes = ", ".join(
            f"{part} {n:,}" for part, n in settings["examples"].items() if part in LIMITED
        )
        note = f"- **{settings['task']}**, {settings['model']}: {sizes}"
        for part in LIMITED:
            if limit := _limit(settings, part):
                note += f" ({limit:,} of {part} drawn by seed 0)"
        if settings["learning_rate"]:
            note += f"; rate {settings['learning_rate']:g}, {settings['max_length']} tokens"
        for part, counts in summary.first["inexact"].items():
            for reason, count in counts.items():
                note += f"; {part}: {count:,} × {reason}"
        notes.append(f"{note}. {settings['protocol']}.")
    return "\n".join(
        [
            "# Results of fine-tuning",
            "",
            "Mean ± standard deviation in percent (seeds). Epoch and rate are chosen on dev, as",
            "for CLUE's published scores: dev is the best of several epochs, on the first seed of",
            "several rates too, and so a little too high. Test chooses nothing; where there is",
            "one, it comes first and counts. Published scores are their makers' own, after",
            "training on all of train, and left out beside a subset of train or dev.",
            "",
            table(results),
            "",
            *notes,
            "",
        ]
    )


def write_card(results: list[dict], model: str, repository: Path) -> None:
    """Writes a model's results into its repository: `model-index` of the card, `.eval_results`.

    The card gets the score of test where there is a labeled one, else that of dev. Only tasks whose
    data set is on the Hub get an entry in `.eval_results`, the score of dev.

    Raises:
        ValueError: if there is no such model.
    """
    import yaml
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCard
    from huggingface_hub import eval_result_entries_to_yaml as as_entries

    summaries = [one for one in summarize(results) if one.settings["model"] == model]
    if not summaries:
        names = sorted({result["settings"]["model"] for result in results})
        raise ValueError(f"no results of {model!r}; there are {', '.join(names)}.")
    index, entries = [], []
    for summary in summaries:
        settings = summary.settings
        score = settings["metric"]
        splits = [split for split, name in summary.scores if name == score]
        for split in splits:
            values = summary.scores[split, score]
            of_what = "".join(
                f", {limit:,} of {part}"
                for part in ("train", split)
                if (limit := _limit(settings, part))
            )
            value = round(100 * statistics.fmean(values), 2)
            of_seeds = f"{len(values)} seed{'s' * (len(values) != 1)}"
            hub = settings["hub"] if split == "dev" else ""  # its tests have no labels
            if split == ("test" if "test" in splits else "dev"):
                index.append(
                    EvalResult(
                        task_type=_CARD_TASKS[settings["head"]],
                        dataset_type=hub or settings["task"],
                        dataset_name=settings["task"],
                        dataset_config=settings["task"],  # else all of CLUE would be one data set
                        dataset_split="validation" if hub else split,  # as CLUE there names it
                        metric_type=score,
                        metric_value=value,
                        metric_name=f"{score}, mean of {of_seeds}{of_what}",
                    )
                )
            if hub:
                notes = f"dev, {score} in percent, mean of {of_seeds}{of_what}"
                entries.append(EvalResultEntry(hub, settings["task"], value, notes=notes))
    card = ModelCard(read_text(repository / "README.md"))
    ours = {result.dataset_name for result in index}
    others = [each for each in card.data.eval_results or [] if each.dataset_name not in ours]
    heading = next((line[2:] for line in card.text.splitlines() if line.startswith("# ")), model)
    card.data.model_name = card.data.model_name or heading
    card.data.eval_results = [*others, *index]
    write_text(repository / "README.md", str(card))
    file = repository / ".eval_results" / "clue.yaml"
    kept = (yaml.safe_load(read_text(file)) or []) if file.exists() else []
    kept = [each for each in kept if each["dataset"]["task_id"] not in ours]
    write_text(file, yaml.safe_dump([*kept, *as_entries(entries)], sort_keys=False))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.results", description="The results of finetuning.clue."
    )
    parser.add_argument("folder", type=Path, help="its --output")
    parser.add_argument("--page", type=Path, help="Markdown file for the table and its notes")
    parser.add_argument("--model", help="whose results go into the card")
    parser.add_argument("--card", type=Path, help="repository whose card gets them")
    options = parser.parse_args(arguments)
    if bool(options.model) != bool(options.card):
        parser.error("--model and --card need each other")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with readable_errors("results"):
        results = collect(options.folder)
        print(table(results))
        if options.page:
            write_text(options.page, page(results))
        if options.card:
            write_card(results, options.model, options.card)


if __name__ == "__main__":
    main()
