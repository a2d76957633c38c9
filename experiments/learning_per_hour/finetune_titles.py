"""What a model is worth as a start: fine-tuned to classify the titles of news (TNEWS).

    python -m experiments.learning_per_hour.finetune_titles --data TNEWS \\
        --model WORK/runs/base.20min.seed1/stage1/final WORK/runs/muon.20min.seed1/stage1/final

TNEWS is a folder with train.json and test.json, one title a line: `sentence` and `label`. Each
model is fine-tuned on the same 10,000 titles for 3 epochs in batches of 32, with three seeds, and
tested on the same 2,000. Of two learning rates it gets the one that is better for the first seed on
2,000 other titles. The yardsticks get the same titles: random weights of each shape, and a logistic
regression on characters and pairs of them. Any encoder that transformers' Auto classes open can be
given; this needs scikit-learn.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from pretraining.files import read_text

SIZES = {"train": 10_000, "development": 2_000, "test": 2_000}
CHOICE_SEED = 0  # of the titles, which are the same for all

SEEDS = (1, 2, 3)
RATES = (1e-4, 3e-4)
EPOCHS, BATCH, WARMUP_SHARE, WEIGHT_DECAY, CLIP = 3, 32, 0.1, 0.01, 1.0
LONGEST = 64  # tokens; titles have about 15

PENALTIES = (1.0, 4.0)  # C of the logistic regression, of which the better one counts


@dataclass(frozen=True)
class Titles:
    """Some titles and the numbers of their classes."""

    texts: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Data:
    """Titles to train on, to choose the rate by, and to test on, none of them in two parts."""

    train: Titles
    development: Titles
    test: Titles

    @property
    def classes(self) -> int:
        """How many there are."""
        return max(self.train.labels) + 1


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        setting: the rate, or what else was chosen.
        development, test: accuracies, one a seed.
    """

    name: str
    parameters: int | None
    setting: str
    development: list[float]
    test: list[float]


def read_titles(file: Path) -> list[tuple[str, str]]:
    """The title and the label of each line.

    Raises:
        OSError, ValueError: naming file, line and what is wrong with it.
    """
    titles = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        try:
            entry = json.loads(line)
            titles.append((entry["sentence"], str(entry["label"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: it must be a JSON object with sentence and label "
                f"({type(error).__name__}: {error})."
            ) from error
    return titles


def choose_titles(folder: Path, sizes: dict[str, int] = SIZES) -> Data:
    """Draws the titles of each part, the same at every call.

    Raises:
        OSError, ValueError: if a file is missing or wrong, or holds too few titles.
    """
    tested = _draw(folder / "test.json", read_titles(folder / "test.json"), sizes["test"])
    seen = {text for text, _ in tested}
    others = [each for each in read_titles(folder / "train.json") if each[0] not in seen]
    drawn = _draw(folder / "train.json", others, sizes["train"] + sizes["development"])
    numbers = {label: number for number, label in enumerate(sorted({label for _, label in drawn}))}
    if unknown := {label for _, label in tested} - numbers.keys():
        raise ValueError(f"{folder}/test.json: labels that train.json lacks: {sorted(unknown)}.")
    train, development = drawn[: sizes["train"]], drawn[sizes["train"] :]
    parts = [
        Titles([text for text, _ in part], [numbers[label] for _, label in part])
        for part in (train, development, tested)
    ]
    return Data(*parts)


def _draw(file: Path, titles: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    titles = list(dict(titles).items())  # no title twice
    if len(titles) < count:
        raise ValueError(f"{file}: {len(titles)} different titles, but {count} are needed.")
    chosen = np.random.default_rng(CHOICE_SEED).permutation(len(titles))[:count]
    return [titles[each] for each in chosen]


def open_model(folder: str, classes: int, pretrained: bool) -> PreTrainedModel:
    """A model with a new classifier, in fp32; its other weights are given or random."""
    auto, trusted = AutoModelForSequenceClassification, {"trust_remote_code": True}
    if pretrained:
        return auto.from_pretrained(
            folder,
            num_labels=classes,
            ignore_mismatched_sizes=True,  # a classifier of other classes
            dtype=torch.float32,
            **trusted,
        )
    config = AutoConfig.from_pretrained(folder, num_labels=classes, **trusted)
    return auto.from_config(config, dtype=torch.float32, **trusted)


def fine_tune(
    model: PreTrainedModel, encoded: Sequence[list[int]], labels: Sequence[int], rate: float
) -> None:
    """Trains a model, in an order that follows from torch's random state.

    Args:
        encoded: token ids of the titles.
        rate: learning rate, which rises over a tenth of the steps and then falls to 0.
    """
    steps = EPOCHS * -(-len(encoded) // BATCH)
    decayed = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_SHARE * steps), steps)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(encoded)).split(BATCH):
            batch = padded([encoded[each] for each in chosen], model)
            wanted = torch.tensor([labels[each] for each in chosen], device=model.device)
            with torch.autocast(model.device.type, torch.bfloat16):
                loss = model(**batch, labels=wanted).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def padded(encoded: Sequence[list[int]], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A batch of titles, (titles, longest of them)."""
    rows = [torch.tensor(each) for each in encoded]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(rows, batch_first=True, padding_value=model.config.pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }
    return {name: each.to(model.device) for name, each in batch.items()}


@torch.no_grad()
def accuracy(model: PreTrainedModel, encoded: Sequence[list[int]], labels: Sequence[int]) -> float:
    """The share of titles that a model classifies right."""
    model.eval()
    right, size = 0, 8 * BATCH
    for start in range(0, len(encoded), size):
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(**padded(encoded[start : start + size], model)).logits
        right += (
            (logits.argmax(-1).cpu() == torch.tensor(labels[start : start + size])).sum().item()
        )
    return right / len(encoded)


def encode(tokenizer: PreTrainedTokenizerBase, titles: Titles) -> list[list[int]]:
    """Token ids of titles, with the tokenizer's frame."""
    return tokenizer(titles.texts, truncation=True, max_length=LONGEST)["input_ids"]


def measure(folder: str, data: Data, pretrained: bool, device: torch.device) -> Line:
    """Fine-tunes a model with each seed, at the rate that is better for the first of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    train, development, test = (
        encode(tokenizer, part) for part in (data.train, data.development, data.test)
    )
    name = folder if pretrained else f"random weights, {folder}"

    def run(seed: int, rate: float) -> Line:
        set_seed(seed)
        model = open_model(folder, data.classes, pretrained).to(device)
        fine_tune(model, train, data.train.labels, rate)
        line = Line(
            name=name,
            parameters=model.num_parameters(),
            setting=f"{rate:g}",
            development=[accuracy(model, development, data.development.labels)],
            test=[accuracy(model, test, data.test.labels)],
        )
        print(f"seed {seed}: {table([line]).splitlines()[-1]}", file=sys.stderr, flush=True)
        return line

    first = better([run(SEEDS[0], rate) for rate in RATES])
    lines = [first, *(run(seed, float(first.setting)) for seed in SEEDS[1:])]
    return dataclasses.replace(
        first,
        development=[each for line in lines for each in line.development],
        test=[each for line in lines for each in line.test],
    )


def regression(data: Data) -> Line:
    """A logistic regression on TF-IDF of characters and pairs of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    seen = features.fit_transform(data.train.texts)
    lines = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=1000).fit(seen, data.train.labels)
        development, test = (
            float(model.score(features.transform(part.texts), part.labels))
            for part in (data.development, data.test)
        )
        name = "logistic regression, characters and pairs"
        lines.append(Line(name, model.coef_.size, f"C = {penalty:g}", [development], [test]))
    return better(lines)


def better(lines: Sequence[Line]) -> Line:
    """The line that is better on the titles for development."""
    return max(lines, key=lambda line: statistics.fmean(line.development))


def shape_of(folder: str, classes: int) -> tuple:
    """What two models have in common whose random weights are worth the same."""
    with torch.device("meta"):
        model = open_model(folder, classes, pretrained=False)
    shapes = [(name, tuple(each.shape)) for name, each in model.named_parameters()]
    vocabulary = AutoTokenizer.from_pretrained(folder, trust_remote_code=True).get_vocab()
    return tuple(shapes), frozenset(vocabulary.items())


def table(lines: Sequence[Line]) -> str:
    """Markdown, the best first; ± is half the distance of the seeds' extremes."""
    rows = [
        "| start | parameters | learning rate | seeds | development | test |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for line in sorted(lines, key=lambda line: -statistics.fmean(line.test)):
        figures = [_shown(each) for each in (line.development, line.test)]
        size = f"{line.parameters / 1e6:.1f} M"
        cells = [line.name, size, line.setting, str(len(line.test)), *figures]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _shown(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    half = 50 * (max(values) - min(values))
    return f"{mean} ± {half:.1f} %" if len(values) > 1 else f"{mean} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", default=[], help="model folders")
    add("--data", type=Path, required=True, help="folder with train.json and test.json")
    arguments = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()  # else every opened model tells of its new classifier
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        data = choose_titles(arguments.data)
        shapes = {shape_of(each, data.classes): each for each in arguments.model}
    except (OSError, ValueError) as error:
        sys.exit(f"finetune_titles: {error}")
    lines = [regression(data)]
    lines += [measure(each, data, True, device) for each in arguments.model]
    lines += [measure(each, data, False, device) for each in shapes.values()]
    print(table(lines))


if __name__ == "__main__":
    main()
