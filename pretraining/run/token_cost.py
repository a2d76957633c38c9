"""Operations that a token of prepared rows costs in training."""

import itertools

import numpy as np

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import split_row
from pretraining.data.order import TrainingOrder
from pretraining.run.flops import training_flops

# Rows whose documents are taken for those of all, to count what a token costs.
SAMPLED_ROWS = 64


def flops_of_a_token(
    config: ChineseModernBertConfig, order: TrainingOrder, step: int
) -> tuple[float, float]:
    """Training operations of a token in the rows from a step on, and of masking it beyond that."""
    lengths = document_lengths(order, step)
    return training_flops(config, lengths, 0) / sum(lengths), training_flops(config, [], 1)


def document_lengths(order: TrainingOrder, step: int) -> list[int]:
    """Tokens of the documents in the rows that are trained on from a step on."""
    cls_id, pad_id = (
        order.rows.manifest["special_token_ids"][name] for name in ("cls_id", "pad_id")
    )
    indices = map(order.row_index, itertools.count(order.positions(step).start))
    lengths = []
    for index in itertools.islice((each for each in indices if each is not None), SAMPLED_ROWS):
        ids, _ = split_row(order.rows[index])
        real = ids[ids != pad_id]
        starts = np.flatnonzero(real == cls_id)
        lengths += np.diff(starts, append=len(real)).tolist()
    return lengths
