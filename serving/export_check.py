"""Whether an exported file does what the model in torch does, and how long it takes."""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.model_folder import ModelFolder
from serving.runtime import Forward, padded

# fp32 sums in another order: between two of torch's own attention backends the logits of the small
# model differ by 3e-6 of the largest.
TOLERANCE = 2e-5
# Of outputs smaller than this, by which the bound is taken: near 0 a sum loses digits.
SMALLEST = 0.1
# Cosine of a text's outputs in int8 with those in fp32, on average.
INT8_COSINE = 0.99

TEXTS = (
    "早上好。",
    "今天的天气比昨天暖和一些。",
    "请把这份文件在星期五之前交给财务部门。",
    "这家餐馆的面条很好吃，不过周末要排很久的队。",
    "会议改到下午三点，地点还是二楼的会议室，请大家带上各自的材料。",
    "研究人员用三年时间记录了这条河流的水位，发现每年夏天的最高水位都比前一年略低。",
)

# What is timed -> texts, tokens of each, and rounds.
SPEEDS = {"milliseconds": (1, 32, 15), "tokens_per_second": (16, 128, 5)}


@dataclass(frozen=True)
class Agreement:
    """How far outputs are from the reference.

    Attributes:
        difference: the largest, at tokens that are not padding, of the output with the largest
            for its size.
        largest: the largest number that the reference gives for this output.
        cosine: of a text's outputs with the reference's, on average; where a text has a few labels
            only, of those of all texts together.
    """

    difference: float
    largest: float
    cosine: float

    def holds(self, int8: bool) -> bool:
        """Whether it is close enough."""
        if int8:
            return self.cosine >= INT8_COSINE
        return self.difference <= TOLERANCE * max(SMALLEST, self.largest)


Batch = tuple[np.ndarray, np.ndarray]


def batches_for(folder: ModelFolder) -> list[Batch]:
    """Ids and masks of several shapes: one token, texts padded on either side, a long text."""
    rows = rows_of(folder)
    long = [token for row in rows for token in row] * 3
    several = [rows, rows[:3], [long[: folder.max_tokens], rows[1]]]
    batches = [batch_of(folder, [rows[0][:1]], "right"), batch_of(folder, rows[2:3], "right")]
    sides = [(some, side) for some in several for side in ("left", "right")]
    return batches + [batch_of(folder, *each) for each in sides]


def rows_of(folder: ModelFolder) -> list[list[int]]:
    """The ids of `TEXTS`; random ones where a tokenizer, one of DNA say, makes none of a text."""
    draw = random.Random(0)
    return [
        encoding.ids or [draw.randrange(folder.config["vocab_size"]) for _ in text]
        for text, encoding in zip(TEXTS, folder.tokenizer().encode_batch(list(TEXTS)), strict=True)
    ]


def longest(folder: ModelFolder) -> int:
    """Tokens of the longest text in `batches_for`."""
    return max(ids.shape[-1] for ids, _ in batches_for(folder))


def batch_of(folder: ModelFolder, rows: Sequence[Sequence[int]], side: str) -> Batch:
    """Ids and mask (batch, sequence), or for multiple choice (batch, 1, sequence)."""
    ids, mask = padded(rows, folder.pad_id, side)
    if folder.head == "ForMultipleChoice":
        return ids[:, None], mask[:, None]
    return ids, mask


def compare(
    folder: ModelFolder, reference: Forward, forward: Forward, batches: Sequence[Batch]
) -> Agreement:
    """How far a file is from the model in torch."""
    differences: dict[str, list] = {name: [] for name in folder.outputs}
    largest: dict[str, list] = {name: [] for name in folder.outputs}
    cosines, labels = [], []

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12)

    for ids, mask in batches:
        expected, given = reference(ids, mask), forward(ids, mask)
        for name in folder.outputs:
            for row in range(len(ids)):
                real = mask[row] == 1 if folder.is_of_tokens(name) else slice(None)
                one, other = expected[name][row][real].ravel(), given[name][row][real].ravel()
                differences[name].append(np.abs(one - other).max())
                largest[name].append(np.abs(one).max())
                if folder.is_of_tokens(name) or folder.pooling:
                    cosines.append(cosine(one, other))
                else:  # the cosine of two numbers is their sign
                    labels.append((one, other))
    if labels:
        cosines.append(cosine(*map(np.concatenate, zip(*labels, strict=True))))
    # np.max and np.argmax, unlike max, give NaN if there is one, which no bound holds.
    apart = np.array([np.max(differences[name]) for name in folder.outputs])
    sizes = np.array([np.max(largest[name]) for name in folder.outputs])
    worst = np.argmax(apart / np.maximum(sizes, SMALLEST))
    return Agreement(float(apart[worst]), float(sizes[worst]), float(np.mean(cosines)))


def timed(folder: ModelFolder, sides: Mapping[str, Forward]) -> dict[str, dict[str, float]]:
    """Median milliseconds of one text of 32 tokens, and tokens per second at 16 × 128.

    The sides take turns, so that a slower machine slows all of them.
    """
    row = [token for row in rows_of(folder) for token in row] * 4
    figures: dict[str, dict[str, float]] = {name: {} for name in sides}
    for key, (count, length, rounds) in SPEEDS.items():
        length = min(length, folder.max_tokens)
        ids, mask = batch_of(folder, [row[:length]] * count, "right")
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, forward in sides.items():
                start = time.perf_counter()
                forward(ids, mask)
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        for name, seconds in times.items():
            median = statistics.median(seconds)
            figures[name][key] = 1000 * median if count == 1 else count * length / median
    return figures
