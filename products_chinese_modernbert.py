"""Training on a CPU by plain matrix products: attention and the loss over the vocabulary.

torch's attention for CPUs does not use bf16 units other than AMX in its products, and its backward
is slower still, with AMX too where documents are short; a loss over 32,000 classes writes and reads
fp32 logits several times. Here both are matrix products and a softmax between them, in pieces that
stay in the cache, with a backward of their own.

They are operators of torch, so that a compiled graph calls them as they are.
"""

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

# Scores that are formed at a time: 8 MiB in bf16, which fit in the cache.
SCORES = 2**22

# Probabilities of attention that the forward of a layer keeps for the backward, 64 MiB in bf16.
# Where there are more, as in long documents, the backward computes them again.
KEPT_SCORES = 2**25

# Logits of the loss at a time: 32 MiB in bf16. Larger tensors are mapped anew each time by the C
# library, and a third of the time goes into page faults.
LOGITS = 2**24
ROUND = 64  # tokens

# Operators are named after the module, because remote code and a checkout may both be imported, and
# after the content of this file: torch keeps compiled graphs on disk, knows an operator by its name
# alone, and would run a graph that was made for other outputs, past the end of their memory.
_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
_NAMESPACE = f"{re.sub(r'[^0-9a-zA-Z]', '_', __name__)}_{_VERSION}"


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody registered a hook on the module, or one on all modules."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return any(getattr(module, name) for name in names) or any(everywhere)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it is torch's layer without adapter, quantizer, offloading or hook around it."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in vars(module)
        and not is_hooked(module)
    )


def _has(capability: str) -> bool:
    """Whether this CPU has it."""
    return torch.cpu.get_capabilities().get(capability, False)


@functools.cache
def products_use_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16 (one with AMX has AVX512-BF16 as well)."""
    return _has("avx512_bf16")


@functools.cache
def products_beat_sdpa() -> bool:
    """Whether this CPU multiplies in bf16, but torch's fused kernel does not use it.

    The kernel knows AMX. With AVX512-BF16 alone it works at a fifth of the rate of matrix products.
    """
    return products_use_bf16() and not _has("amx_tile")


def by_products(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether plain matrix products are the fastest inference on the device of x, in a type."""
    return (x.device.type, dtype) == ("cpu", torch.bfloat16) and products_beat_sdpa()


def trains_by_products(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether local layers train fastest by plain matrix products on the device of x, in a type.

    With AMX too: the kernel's backward for masks is slow. Global layers have no mask there, and
    `make_plan` decides about them by length.
    """
    return (x.device.type, dtype) == ("cpu", torch.bfloat16) and products_use_bf16()


# ---------------------------------------------------------------------------------------------
# Attention of rectangular batches
# ---------------------------------------------------------------------------------------------


def pieces(batch: int, heads: int, queries: int, keys: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of (batch, heads, queries) that have about `SCORES` scores each."""
    keys = max(1, keys)
    rows = max(1, min(queries, SCORES // keys))
    heads_at_once = max(1, min(heads, SCORES // (keys * rows)))
    entries = max(1, SCORES // (keys * rows * heads))
    for entry, head, row in itertools.product(
        range(0, batch, entries), range(0, heads, heads_at_once), range(0, queries, rows)
    ):
        yield (
            slice(entry, entry + entries),
            slice(head, head + heads_at_once),
            slice(row, row + rows),
        )


def products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kept: Tensor | None = None
) -> Tensor:
    """Attention of rectangular batches, without a backward.

    Args:
        q: (batch, heads, queries, head size), scaled.
        k, v: (batch, heads, keys, head size).
        mask: additive, (batch, 1, queries, keys).
        kept: (batch, heads, queries, keys), is filled with the probabilities.

    Returns:
        The output, of q's shape.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # else each piece is copied
    out = torch.empty_like(q)
    # One for all pieces: the C library maps memory of that size anew each time, which takes as long
    # as the product.
    keys = k.shape[2]
    memory = q.new_empty(min(math.prod(q.shape[:3]) * keys, max(SCORES, keys)))
    for piece in pieces(*q.shape[:3], keys):
        shape = (*q[piece].shape[:3], keys)
        scores = memory[: math.prod(shape)].view(shape)
        weights = _probabilities(q, k, mask, piece, scores, scores if kept is None else kept[piece])
        torch.matmul(weights, v[piece[:2]], out=out[piece])
    return out


def products_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from that of the output of `products`."""
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    for piece in pieces(*q.shape[:3], k.shape[2]):
        matrices, first = piece[:2], piece[2].start == 0
        weights = kept[piece] if kept is not None else _probabilities(q, k, mask, piece)
        _add_product(dv[matrices], weights.mT, grad[piece], first)
        weights = torch.ops.aten._softmax_backward_data(
            grad[piece] @ v[matrices].mT, weights, -1, weights.dtype
        )
        torch.matmul(weights, k[matrices], out=dq[piece])
        _add_product(dk[matrices], weights.mT, q[piece], first)
    return dq, dk, dv


def _probabilities(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    piece: tuple,
    scores: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Softmax of the scores of a piece; both are written where there is a tensor for them."""
    entry, head, row = piece
    scores = torch.matmul(q[piece], k[entry, head].mT, out=scores)
    if mask is not None:
        scores += mask[entry, :, row]
    return torch.softmax(scores, -1, out=scores if out is None else out)


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Adds a product, or begins with it."""
    if first:
        torch.matmul(left, right, out=total)
    else:
        total += left @ right


# ---------------------------------------------------------------------------------------------
# Streams as rectangular batches, and their inverses
# ---------------------------------------------------------------------------------------------


def _spread(x: Tensor, token: Tensor) -> Tensor:
    """(tokens, heads, size) -> (tiles, heads, width, size), zeros at the places that are empty."""
    return F.pad(x, (0, 0, 0, 0, 0, 1))[token].transpose(1, 2).contiguous()


def _gather(x: Tensor, place: Tensor) -> Tensor:
    """(tiles, heads, width, size) -> (tokens, heads, size)."""
    return x.transpose(1, 2).flatten(0, 1)[place]


def _blocks(x: Tensor, block: int, blocks: int) -> Tensor:
    """(tokens, heads, size) -> (blocks, heads, block, size), zeros behind the last token."""
    if empty := blocks * block - len(x):
        x = F.pad(x, (0, 0, 0, 0, 0, empty))
    return x.unflatten(0, (blocks, block)).transpose(1, 2).contiguous()


def _neighborhoods(x: Tensor, block: int, blocks: int, window: int) -> Tensor:
    """(tokens, heads, size) -> (blocks, heads, block + 2 * window, size): what a block can see."""
    x = F.pad(x, (0, 0, 0, 0, window, blocks * block + window - len(x)))
    return x.unfold(0, block + 2 * window, block).transpose(2, 3).contiguous()


def _from_blocks(x: Tensor, total: int) -> Tensor:
    """The inverse of `_blocks`."""
    return x.transpose(1, 2).flatten(0, 1)[:total]


def _sum_neighborhoods(x: Tensor, block: int, window: int, total: int) -> Tensor:
    """The transpose of `_neighborhoods`: each token's sum over the blocks that see it."""
    blocks, heads, keys, size = x.shape
    whole = x.new_zeros(blocks * block + 2 * window, heads, size)
    for start in range(0, keys, block):  # places that far apart in a neighborhood do not overlap
        part = x[:, :, start : start + block]
        whole[start:].unfold(0, part.shape[2], block)[:blocks] += part.mT
    return whole[window : window + total]


# ---------------------------------------------------------------------------------------------
# Attention of a stream
# ---------------------------------------------------------------------------------------------


def stream_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    token: Tensor | None = None,
    place: Tensor | None = None,
) -> Tensor:
    """Attention of a stream, with a backward: local, or within documents in the rows of a grid.

    Args:
        q, k, v: (total_tokens, heads, head size).
        mask: additive, (blocks, 1, block, block + 2 * window) for local attention, else (rows, 1,
            width, width) of the grid.
        token: of the grid, (rows, width) number of the token at each place, `total_tokens` at
            empty places; None for local attention.
        place: of the grid, (total_tokens,) place of each token in the flattened rows.

    Returns:
        The output, of q's shape.
    """
    return _attention(q, k, v, mask, token, place)[0]


@torch.library.custom_op(f"{_NAMESPACE}::stream_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, token: Tensor | None, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and for the backward the batch (q, k, v) and the probabilities if they fit."""
    total, heads, size = q.shape
    batch, _, queries, keys = mask.shape
    q = q * size**-0.5
    if token is None:
        window = (keys - queries) // 2
        q = _blocks(q, queries, batch)
        k, v = (_neighborhoods(x, queries, batch, window) for x in (k, v))
    else:
        q, k, v = (_spread(x, token) for x in (q, k, v))
    kept = q.new_empty(batch if _fit(heads, mask) else 0, heads, queries, keys)
    out = products(q, k, v, mask, kept if len(kept) else None)
    out = _from_blocks(out, total) if token is None else _gather(out, place)
    return out, q, k, v, kept


@torch.library.custom_op(f"{_NAMESPACE}::stream_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    mask: Tensor,
    token: Tensor | None,
    place: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (total, *_), (batch, _, queries, keys) = grad.shape, mask.shape
    grad = _blocks(grad, queries, batch) if token is None else _spread(grad, token)
    gradients = products_backward(grad, q, k, v, mask, kept if len(kept) else None)
    if token is None:
        dq, window = _from_blocks(gradients[0], total), (keys - queries) // 2
        dk, dv = (_sum_neighborhoods(x, queries, window, total) for x in gradients[1:])
    else:
        dq, dk, dv = (_gather(x, place) for x in gradients)
    return dq * q.shape[-1] ** -0.5, dk, dv


def _fit(heads: int, mask: Tensor) -> bool:
    """Whether the probabilities are few enough to keep them."""
    batch, _, queries, keys = mask.shape
    return batch * heads * queries * keys <= KEPT_SCORES


@_attention.register_fake
def _(q, k, v, mask, token, place):
    (total, heads, size), (batch, _, queries, keys) = q.shape, mask.shape
    return (
        q.new_empty(total, heads, size),
        *(q.new_empty(batch, heads, length, size) for length in (queries, keys, keys)),
        q.new_empty(batch if _fit(heads, mask) else 0, heads, queries, keys),
    )


@_attention_backward.register_fake
def _(grad, q, k, v, kept, mask, token, place):
    return tuple(grad.new_empty(grad.shape) for _ in range(3))


def _save_batch(ctx, inputs, output):
    ctx.save_for_backward(*output[1:], *inputs[3:])


def _gradients(ctx, grad, *_):
    return (*_attention_backward(grad, *ctx.saved_tensors), None, None, None)


_attention.register_autograd(_gradients, setup_context=_save_batch)


# ---------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dtype: torch.dtype
) -> Tensor:
    """Cross-entropy of a linear layer's logits, summed over the tokens.

    The gradients are computed with it, a piece of the tokens at a time, so that logits are neither
    kept nor written in fp32.

    Args:
        x: (tokens, hidden_size).
        weight: (classes, hidden_size).
        bias: (classes,).
        labels: (tokens,).
        dtype: of the products.

    Raises:
        IndexError: on a label that is no class.
    """
    return _loss(x, weight, bias, labels, dtype)[0]


@torch.library.custom_op(f"{_NAMESPACE}::linear_cross_entropy", mutates_args=())
def _loss(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients by x, weight and bias in the type of the products."""
    # A negative number would count from the last class.
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(weight):
        raise IndexError(
            f"labels lie between {labels.min()} and {labels.max()}, but the classes are 0 to "
            f"{len(weight) - 1}; what is not to be predicted is labeled -100."
        )
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    loss = x.new_zeros((), dtype=torch.float32)
    dx, dweight, dbias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    size = max(1, LOGITS // len(weight))
    if size > ROUND:  # products of odd sizes are a fifth slower
        size -= size % ROUND
    for start in range(0, len(x), size):
        part, truth = x[start : start + size], labels[start : start + size]
        probabilities = part @ weight.T
        probabilities += bias
        torch.softmax(probabilities, -1, out=probabilities)
        right = torch.arange(len(part)), truth
        likelihood = probabilities[right]
        loss -= likelihood.float().clamp(min=torch.finfo(dtype).tiny).log().sum()
        probabilities[right] = likelihood - 1
        dx[start : start + size] = probabilities @ weight
        by_weight = probabilities.T @ part
        by_bias = probabilities.new_ones(len(part)) @ probabilities
        if start == 0:
            dweight, dbias = by_weight, by_bias
            continue
        # Sums of several parts are formed in fp32.
        dweight = dweight.float().add_(by_weight)
        dbias = dbias.float().add_(by_bias)
    return loss, dx, dweight.to(dtype), dbias.to(dtype)


@_loss.register_fake
def _(x, weight, bias, labels, dtype):
    loss = x.new_empty((), dtype=torch.float32)
    return loss, *(torch.empty_like(each, dtype=dtype) for each in (x, weight, bias))


def _save_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[1:], *inputs[:4])
    ctx.dtype = inputs[4]


def _scaled_gradients(ctx, grad, *_):
    *gradients, x, weight, bias, labels = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return (*(each.float() * grad for each in gradients), None, None)
    # With `create_graph` they are differentiated again. Views, since the weights may be tied: x can
    # depend on them.
    given = [each.view_as(each) for each in (x, weight, bias)]
    logits = F.linear(*(each.to(ctx.dtype) for each in given)).float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    wanted = [each for each in given if each.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
    return (*(next(found) if each.requires_grad else None for each in given), None, None)


_loss.register_autograd(_scaled_gradients, setup_context=_save_gradients)
