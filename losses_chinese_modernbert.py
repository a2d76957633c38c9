"""The losses of the heads, summed and then divided by the items of the whole optimizer step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from .products_chinese_modernbert import is_plain_linear, linear_cross_entropy
    from .stream_chinese_modernbert import IGNORED
except ImportError:  # imported from a checkout, where the files are not a package
    from products_chinese_modernbert import is_plain_linear, linear_cross_entropy
    from stream_chinese_modernbert import IGNORED

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _per_item(total: Tensor, items: Tensor | int, num_items_in_batch: Tensor | int | None):
    """A summed loss divided by the items of the whole optimizer step, or else of this batch.

    Sums that are divided by the step's items add up to the loss of one large batch, however the
    step is split into accumulated batches and processes. Without any item it is 0, not NaN.
    """
    count = items if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def token_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Cross-entropy in fp32 of (..., classes) logits over the labels (...) that are not ignored."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten().to(logits.device).long()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return _per_item(total, (labels != IGNORED).sum(), num_items_in_batch)


def masked_loss(
    decoder: nn.Module, x: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """Cross-entropy of the decoder's logits for the states x (tokens, hidden_size) in training.

    On a CPU no logits are kept in fp32 and bf16, unless something is wrapped around the decoder.

    Args:
        labels: (tokens,), none of them ignored.
    """
    plain = is_plain_linear(decoder) and decoder.bias is not None
    if x.device.type != "cpu" or not plain:
        return token_loss(decoder(x), labels, num_items_in_batch)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else decoder.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        return token_loss(decoder(x), labels, num_items_in_batch)
    total = linear_cross_entropy(x, decoder.weight, decoder.bias, labels, dtype)
    return _per_item(total, (labels != IGNORED).sum(), num_items_in_batch)


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """What transformers takes the task for when the configuration does not say."""
    if num_labels == 1:
        return "regression"
    several = labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"


def document_loss(
    logits: Tensor, labels: Tensor, problem_type: str, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """The loss of (documents, num_labels) logits for one of transformers' three problem types.

    Raises:
        ValueError: on another type, or on labels whose number does not fit.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"config.problem_type {problem_type!r} is unknown; set {', '.join(PROBLEM_TYPES)}, or "
            "None, which has it follow from the labels."
        )
    single = problem_type == "single_label_classification"
    if labels.numel() != (len(logits) if single else logits.numel()):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, but there are {len(logits)} documents and "
            f"{logits.shape[1]} labels for {problem_type}. Change the labels, or set "
            "config.problem_type."
        )
    if single:
        return token_loss(logits, labels.view(-1), num_items_in_batch)
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    labels = labels.view_as(logits).to(logits.device, torch.float32)
    total = loss(logits.float(), labels, reduction="sum")
    return _per_item(total, logits.numel(), num_items_in_batch)


def answers_inside(positions: Tensor, logits: Tensor) -> Tensor:
    """(batch,) positions, IGNORED outside the (batch, sequence) logits and in padding, whose logits
    are the lowest there are.

    Raises:
        ValueError: if there is not one position a row.
    """
    if positions.numel() != logits.shape[0]:
        raise ValueError(
            f"{positions.numel()} positions of answers for {logits.shape[0]} rows: a row has one "
            "answer, so give each document a row of its own."
        )
    positions, last = positions.view(-1).to(logits.device), logits.shape[1] - 1
    there = logits.gather(1, positions.clamp(0, last)[:, None])[:, 0]
    inside = (positions >= 0) & (positions <= last) & (there != torch.finfo(logits.dtype).min)
    return positions.where(inside, IGNORED)
