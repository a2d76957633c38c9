"""Reading, order and masking, beside transformers' own whole-word masking.

    python benchmarks/data.py rows/train-1024 rows/train-8192 --tokenizer .

For each row set, in one process and in turns: rows drawn in training order and masked, as Trainer
asks for them; masking alone, the rows at hand; and transformers' collator, given the same rows with
everything it needs worked out before. Millions of tokens a second, medians over the rounds; "ratio"
is the median of the rounds' ratios of masking alone to transformers' collator.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_collator_wwm import DataCollatorForWholeWordMasking, split_row
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import Rows, open_rows

RATE = 0.3
BATCH_TOKENS = 32768  # of a process, as on a GPU


def for_transformers(row: np.ndarray, special: dict[str, int]) -> dict[str, list]:
    """A row as transformers' collator wants it: a gap in the offsets is a word border."""
    ids, starts = split_row(row)
    framing = np.isin(ids, [special["cls_id"], special["sep_id"], special["pad_id"]])
    first = np.arange(len(ids)) + (starts | framing).cumsum()
    return {
        "input_ids": ids.tolist(),
        "attention_mask": [1] * len(ids),
        "special_tokens_mask": framing.astype(int).tolist(),
        "offset_mapping": np.stack([first, first + 1], axis=1).tolist(),
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(rows: Rows, tokenizer: PreTrainedTokenizerBase, rounds: int, tokens: int) -> None:
    batch = max(1, BATCH_TOKENS // rows.seq_len)
    settings = {"seed": 1, "mask_rate": lambda step: RATE}
    ours = DataCollatorForWholeWordMasking.for_rows(rows, **settings)
    special = rows.manifest["special_token_ids"]
    number = max(batch, min(tokens // rows.seq_len, len(rows)) // batch * batch)
    order = TrainingOrder(rows, number * (rounds + 1), batch, seed=1)
    at_hand = [order[position] for position in range(number)]
    few = [for_transformers(each["row"], special) for each in at_hand[:batch]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it only ever replaces by [MASK]
        theirs = DataCollatorForLanguageModeling(
            tokenizer, whole_word_mask=True, mlm_probability=RATE
        )

    def read_and_mask(first: int) -> None:
        for start in range(first, first + number, batch):
            ours([order[position] for position in range(start, start + batch)])

    def mask() -> None:
        for start in range(0, number, batch):
            ours(at_hand[start : start + batch])

    figures = []
    for turn in range(rounds + 1):
        reading = number * rows.seq_len / seconds(lambda turn=turn: read_and_mask(turn * number))
        masking = number * rows.seq_len / seconds(mask)
        # It takes the offsets out of what it is given.
        given = [dict(each) for each in few]
        peer = batch * rows.seq_len / seconds(lambda given=given: theirs(given))
        if turn:  # the first warms up
            figures.append((reading, masking, peer, masking / peer))
    reading, masking, peer, ratio = (statistics.median(each) for each in zip(*figures, strict=True))
    print(
        f"| {rows.seq_len:,} | {reading / 1e6:.1f} | {masking / 1e6:.1f} | {peer / 1e6:.3f} | "
        f"{ratio:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, nargs="+", help="row sets")
    parser.add_argument("--tokenizer", default=".", help="its folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8_000_000, help="of each round")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, trust_remote_code=True)
    print("| tokens of a row | read and masked | masked | transformers' collator | ratio |")
    print("|--:|--:|--:|--:|--:|")
    for folder in arguments.rows:
        measure(open_rows(folder), tokenizer, arguments.rounds, arguments.tokens)


if __name__ == "__main__":
    main()
