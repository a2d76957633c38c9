"""Attention of Chinese ModernBERT: everything between queries, keys, values and the output.

`attend` is the one function that the layers call, with these backends behind it: `eager`, `sdpa`,
`varlen_attention` (torch's own FlashAttention), the flash-attn package or its replacement from the
Hub, `flex_attention`, and functions registered with transformers' `AttentionInterface`. In all of
them a token sees its own document only, and in local layers only as far as the window.

What a backend needs (masks, a rectangular layout) is an `AttentionPlan`, made once a forward for
all layers. Nobody changes it, nor the `TokenStream` that says what the tokens are.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from .backends_chinese_modernbert import is_flash
    from .products_chinese_modernbert import (
        by_products,
        products,
        products_beat_sdpa,
        stream_attention,
        trains_by_products,
    )
    from .static_chinese_modernbert import StaticPlan, static_attention
    from .stream_chinese_modernbert import TokenStream, moved
except ImportError:  # imported from a checkout, where the files are not a package
    from backends_chinese_modernbert import is_flash
    from products_chinese_modernbert import (
        by_products,
        products,
        products_beat_sdpa,
        stream_attention,
        trains_by_products,
    )
    from static_chinese_modernbert import StaticPlan, static_attention
    from stream_chinese_modernbert import TokenStream, moved

# ---------------------------------------------------------------------------------------------
# The plan: what a backend needs, made once a forward for all layers
# ---------------------------------------------------------------------------------------------

# Tokens that a layer processes at a time in CPU inference: the intermediate results then stay in
# the cache, and below 32 MiB, beyond which the C library maps memory anew each time and a quarter
# of the time goes into page faults. Much smaller chunks cost as much again, because every product
# rearranges its weights first.
TOKEN_CHUNK = 1024

# Queries of one block of local attention on `sdpa`; their keys are the block and a window to each
# side. Plain matrix products are as fast in smaller blocks, which have fewer keys for nothing.
LOCAL_BLOCK, TRAINING_BLOCK = 128, 64

# With AMX, global layers train by plain matrix products where no document is longer than this:
# torch's kernel is called for each document, and has the faster products.
AMX_LONGEST = 256

# flex_attention works in blocks of this many queries and keys.
FLEX_BLOCK = 128


@dataclass(eq=False)
class Grid:
    """The tokens in rows of one length, for backends that take rectangular batches.

    Attributes:
        token: (rows, width) number of the token at each place, `total_tokens` at empty places.
        document: (rows, width) number of its document, -1 at empty places.
        place: (total_tokens,) place of each token in the flattened rows.
    """

    token: Tensor
    document: Tensor
    place: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """(total_tokens, heads, head size) -> (rows, heads, width, head size), zeros elsewhere."""
        return F.pad(x, (0, 0, 0, 0, 0, 1))[self.token].transpose(1, 2)

    def gather(self, x: Tensor) -> Tensor:
        """(rows, width, heads, head size) -> (total_tokens, heads, head size)."""
        return x.flatten(0, 1)[self.place]

    def visible(self, window: int | None) -> Tensor:
        """(rows, 1, width, width), True where a query may see a key.

        Empty places see each other: a row without any key would give NaN.
        """
        allowed = self.document[:, :, None] == self.document[:, None, :]
        if window is not None:
            allowed = allowed & ((self.token[:, :, None] - self.token[:, None, :]).abs() <= window)
        return allowed.unsqueeze(1)


@dataclass(eq=False)
class AttentionPlan:
    """What the attention backend of a forward needs, shared by all layers.

    Attributes:
        backend: name of the attention function.
        stream: the tokens that it is for.
        angles: cos and sin of RoPE by layer type, from `rotary_angles`.
        output_attentions: whether attention weights are returned.
        compiled: whether the layers run in a compiled graph. It has to hold for every batch, so
            it takes the most general path and reads all sizes from tensors.
        chunk: tokens that a layer processes at a time, or None for all at once.
        local_mask: of blockwise local attention, (blocks, 1, block, block + 2 * window); None
            where no document is longer than the window.
        local_by_products: whether local layers train by plain matrix products.
        global_mask: of training by plain matrix products, (rows, 1, width, width) of the grid.
        block_masks: of flex_attention, by window.
        grid: for the backends that take rectangular batches: one row a document, several whole
            documents in a row, or the batch's own rows where attention weights are returned.
        extent: (longest document, 0): carries a size into a compiled graph.
    """

    backend: str
    stream: TokenStream
    angles: Mapping[str, tuple[Tensor, Tensor]]
    output_attentions: bool = False
    compiled: bool = False
    chunk: int | None = None
    local_mask: Tensor | None = None
    local_by_products: bool = False
    global_mask: Tensor | None = None
    block_masks: Mapping[int | None, BlockMask] = field(default_factory=dict)
    grid: Grid | None = None
    extent: Tensor | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return self.stream.longest if self.extent is None else self.extent.shape[0]

    def to(self, device: torch.device | str | int) -> "AttentionPlan":
        """The plan for layers on another device: what accelerate calls between two of them."""
        if self.stream.positions.device == torch.device(device):
            return self
        plan = moved(dataclasses.replace(self, block_masks={}), device)
        # These hold a function of the tokens, which cannot be moved.
        masks = {window: make_block_mask(plan.stream, window) for window in self.block_masks}
        return dataclasses.replace(plan, block_masks=masks)


def make_plan(
    stream: TokenStream,
    angles: Mapping[str, tuple[Tensor, Tensor]],
    backend: str,
    windows: set[int | None],
    dtype: torch.dtype,
    output_attentions: bool = False,
    compiled: bool = False,
) -> AttentionPlan:
    """Makes what the layers of a forward share.

    Args:
        stream: the tokens.
        angles: cos and sin of RoPE by layer type.
        backend: name of the attention function.
        windows: tokens that layers see to each side; None for layers that see the whole document.
        dtype: of queries and keys.
        output_attentions: whether attention weights are returned.
        compiled: whether the layers run in a compiled graph.
    """
    chunk = extent = local_mask = global_mask = grid = None
    block_masks, training = {}, torch.is_grad_enabled()
    if stream.positions.device.type == "cpu" and not compiled and not training:
        chunk = TOKEN_CHUNK
    window = max(windows - {None}, default=None)
    local_by_products = global_by_products = False
    if backend == "sdpa" and training and trains_by_products(stream.positions, dtype):
        local_by_products = True
        # A compiled graph has to hold for every batch.
        short = stream.longest <= AMX_LONGEST and not compiled
        global_by_products = short or products_beat_sdpa()
    if backend == "sdpa" and window is not None and (compiled or stream.longest > window + 1):
        block = TRAINING_BLOCK if local_by_products else LOCAL_BLOCK
        # A graph specialized for one block could not take more, so a compiled one gets two.
        blocks = max(-(-len(stream.document) // block), 1 + compiled)
        local_mask = make_local_mask(stream, window, block, blocks, dtype)
    if backend == "flex_attention":
        block_masks = {window: make_block_mask(stream, window) for window in windows}
    if output_attentions:
        grid = grid_of_batch(stream)
    elif backend == "sdpa" and training and (compiled or global_by_products):
        grid = grid_of_tiles(stream, smallest=1 + compiled)
        if global_by_products:
            global_mask = additive(grid.visible(None), dtype)
    elif not is_built_in(backend) or (compiled and backend == "eager"):
        grid = grid_of_documents(stream, smallest=1 + compiled)
    if compiled:
        extent = torch.empty(stream.longest, 0)
        tensors = [stream.cu_seqlens, stream.document, stream.positions, local_mask, extent]
        tensors += itertools.chain.from_iterable(angles.values())
        if grid is not None:
            tensors += [grid.token, grid.document, grid.place, global_mask]
            for x in (grid.token, grid.document):
                torch._dynamo.maybe_mark_dynamic(x, 1)
        if global_mask is not None:
            torch._dynamo.maybe_mark_dynamic(global_mask, (2, 3))
        for x in tensors:
            if x is not None:
                torch._dynamo.maybe_mark_dynamic(x, 0)
    return AttentionPlan(
        backend=backend,
        stream=stream,
        angles=angles,
        output_attentions=output_attentions,
        compiled=compiled,
        chunk=chunk,
        local_mask=local_mask,
        local_by_products=local_by_products,
        global_mask=global_mask,
        block_masks=block_masks,
        grid=grid,
        extent=extent,
    )


def in_chunks(
    function: Callable[..., Tensor | tuple[Tensor, ...]], chunk: int | None, *tensors: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Applies a function that treats each token by itself to `chunk` tokens at a time.

    Args:
        function: takes and returns tensors whose first dimension is tokens.
        chunk: tokens at a time, or None for all at once.
        tensors: what the function takes.
    """
    if chunk is None or len(tensors[0]) <= chunk:
        return function(*tensors)
    wholes, start = None, 0
    for pieces in zip(*(x.split(chunk) for x in tensors), strict=True):
        results = function(*pieces)
        alone = isinstance(results, Tensor)
        results = (results,) if alone else results
        if wholes is None:
            wholes = tuple(x.new_empty(len(tensors[0]), *x.shape[1:]) for x in results)
        for whole, result in zip(wholes, results, strict=True):
            whole[start : start + len(result)] = result
        start += chunk
    return wholes[0] if alone else wholes


def make_local_mask(
    stream: TokenStream, window: int, block: int, blocks: int, dtype: torch.dtype
) -> Tensor:
    """Additive mask of blockwise local attention, for blocks of `block` queries.

    Returns (blocks, 1, block, block + 2 * window): 0 where a query of the block may see the key,
    -inf elsewhere.
    """
    device = stream.positions.device
    padded = blocks * block
    filler = padded - len(stream.document)
    document = F.pad(stream.document, (window, filler + window), value=-1)
    of_query = document[window : window + padded].view(-1, block, 1)
    of_key = document.unfold(0, block + 2 * window, block).unsqueeze(1)
    offset = torch.arange(block, device=device)[:, None] + window
    distance = (offset - torch.arange(block + 2 * window, device=device)).abs()
    # The filler behind the last token shares the document -1, so each of its rows has a key to
    # attend to: a row that is masked throughout would send NaN back through the keys.
    return additive((of_query == of_key) & (distance <= window), dtype).unsqueeze(1)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, -inf elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, -math.inf)


def make_block_mask(stream: TokenStream, window: int | None) -> BlockMask:
    """flex_attention's mask.

    The keys that a block of queries can see are contiguous, from the first document's start (or
    the window's) to the last document's end, so the blocks to visit are found in time linear in
    the tokens; `visible` decides about the pairs within them.
    """
    total, device = len(stream.document), stream.positions.device
    blocks = -(-total // FLEX_BLOCK)
    token = torch.arange(total, device=device)
    first = stream.cu_seqlens.long()[stream.document]
    last = stream.cu_seqlens.long()[stream.document + 1] - 1
    if window is not None:
        first, last = first.maximum(token - window), last.minimum(token + window)
    filler = blocks * FLEX_BLOCK - total
    # Places behind the last token see its block alone, so that their rows are not empty.
    first = F.pad(first, (0, filler), value=total - 1).view(blocks, FLEX_BLOCK).amin(1)
    last = F.pad(last, (0, filler), value=total - 1).view(blocks, FLEX_BLOCK).amax(1)
    begin, end = first // FLEX_BLOCK, last // FLEX_BLOCK
    document = F.pad(stream.document, (0, filler), value=-1)

    def visible(_batch, _head, query, key):
        same = document[query] == document[key]
        return same if window is None else same & ((query - key).abs() <= window)

    return BlockMask.from_kv_blocks(
        (end - begin + 1).to(torch.int32)[None, None],
        (begin[:, None] + torch.arange(blocks, device=device))
        .clamp(max=blocks - 1)
        .to(torch.int32)[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(total, total),
    )


def grid_of_documents(stream: TokenStream, smallest: int) -> Grid:
    """One row a document, and at least `smallest` rows and columns.

    A graph specialized for a single row or column could not take more.
    """
    width = max(stream.longest, smallest)
    begins = range(0, (len(stream.bounds) - 1) * width, width)
    return _grid(stream, begins, width, smallest)


# Widths of tiles are multiples of this, so that the products' shapes come again.
TILE_WIDTH = 64


def grid_of_tiles(stream: TokenStream, smallest: int) -> Grid:
    """Rows as wide as the longest document, each filled with as many whole documents as fit.

    One row a document would be mostly empty where a long document stands beside short ones.
    """
    width = -(-stream.longest // TILE_WIDTH) * TILE_WIDTH
    begins, end = [], 0
    for length in (end - start for start, end in itertools.pairwise(stream.bounds)):
        if end % width + length > width:
            end = -(-end // width) * width
        begins.append(end)
        end += length
    return _grid(stream, begins, width, smallest)


def _grid(stream: TokenStream, begins: Sequence[int], width: int, smallest: int) -> Grid:
    """A grid in which each document begins at a place, with at least `smallest` rows."""
    total, document = len(stream.document), stream.document
    token = torch.arange(total, device=document.device)
    shift = torch.tensor(begins, device=document.device) - stream.cu_seqlens[:-1]
    place = token + shift[document]
    rows = max(smallest, begins[-1] // width + 1)
    whole = torch.full((rows * width,), total, device=document.device)
    whole = whole.index_copy_(0, place, token).view(rows, width)
    return Grid(whole, F.pad(document, (0, 1), value=-1)[whole], place)


def grid_of_batch(stream: TokenStream) -> Grid:
    """The rows of the input, padding included."""
    document = stream.document
    place = torch.arange(len(document), device=document.device)
    token = stream.pad(place, len(place))
    if stream.indices is not None:
        place = stream.indices
    return Grid(token, F.pad(document, (0, 1), value=-1)[token], place)


# ---------------------------------------------------------------------------------------------
# One function for all backends
# ---------------------------------------------------------------------------------------------


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan | StaticPlan,
    window: int | None,
    module: nn.Module,
) -> tuple[Tensor, Tensor | None]:
    """Attention within documents, by the plan's backend.

    Args:
        q, k, v: (total_tokens, heads, head size), queries and keys with RoPE applied.
        plan: from `make_plan`, or the static form of it in a graph that is exported.
        window: tokens that a token sees to each side, itself not counted; None for the whole
            document.
        module: the caller, which is passed on to registered functions.

    Returns:
        The output, of q's shape, and the attention weights (batch, heads, sequence, sequence) of
        the padded input where the plan asks for them, else None. The output is computed from these
        very weights, so that gradients reach them.
    """
    if isinstance(plan, StaticPlan):
        return static_attention(q, k, v, plan, window), None
    if is_flash(plan.backend):
        return flash_attention(q, k, v, plan, window), None
    if plan.backend == "eager":
        return eager_attention(q, k, v, plan, window)
    if plan.backend in ATTENTION_BACKENDS:
        return ATTENTION_BACKENDS[plan.backend](q, k, v, plan, window), None
    return registered_attention(q, k, v, plan, window, module)


# ---------------------------------------------------------------------------------------------
# Backends
# ---------------------------------------------------------------------------------------------


def runs_eagerly_without_gradients() -> bool:
    """Whether a tensor that is not needed again may be overwritten; a graph plans that itself."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> tuple[Tensor, Tensor | None]:
    """The reference: softmax in fp32 over all scores. The only built-in that returns weights."""
    if plan.grid is None:
        return eager_attention_per_document(q, k, v, plan.stream, window), None
    q, k, v = (plan.grid.spread(x.to(q.dtype)) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~plan.grid.visible(window), -math.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    weights = weights.masked_fill(plan.grid.document[:, None, :, None] < 0, 0)
    out = plan.grid.gather((weights @ v).transpose(1, 2))
    return out, weights if plan.output_attentions else None


def eager_attention_per_document(
    q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None
) -> Tensor:
    """The same, one document after the other."""
    outputs = []
    lengths = [end - start for start, end in itertools.pairwise(stream.bounds)]
    # Split at once: the backward of a slice fills zeros for the whole batch, for each document.
    for queries, keys, values in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * q.shape[-1] ** -0.5
        if window is not None:
            position = torch.arange(len(queries), device=q.device)
            too_far = (position[:, None] - position[None, :]).abs() > window
            scores = scores.masked_fill(too_far, -math.inf)
        weight = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        outputs.append(torch.einsum("hqk,khd->qhd", weight, values))
    return torch.cat(outputs)


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """torch's scaled_dot_product_attention: local layers in blocks, global ones per document."""
    # Under autocast q and k come out of RoPE and v out of a projection: make them one type.
    k, v = k.to(q.dtype), v.to(q.dtype)
    local = window is not None and plan.local_mask is not None
    if local and plan.local_by_products:
        return stream_attention(q, k, v, plan.local_mask)
    if local:
        return _sdpa_blockwise(q, k, v, plan, window)
    if plan.global_mask is not None:
        return stream_attention(q, k, v, plan.global_mask, plan.grid.token, plan.grid.place)
    if not torch.compiler.is_compiling():
        return _sdpa_per_document(q, k, v, plan.stream.bounds)
    if plan.grid is None and torch.is_grad_enabled():  # layers that are compiled one by one
        return _sdpa_outside_of_graphs(q, k, v, plan.stream.bounds)
    if plan.grid is None:
        return sdpa_per_document(q, k, v, plan.stream.cu_seqlens)
    q, k, v = (plan.grid.spread(x) for x in (q, k, v))
    out = dot_product_attention(q, k, v, plan.grid.visible(None))
    return plan.grid.gather(out.transpose(1, 2))


def _sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[int]) -> Tensor:
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    if len(set(lengths)) == 1:  # uniform lengths go as one batch
        q, k, v = (x.view(len(lengths), -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    # Split at once, as above.
    parts = (x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (q, k, v))
    outputs = [
        dot_product_attention(*document)
        for length, *document in zip(lengths, *parts, strict=True)
        if length
    ]
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


_sdpa_outside_of_graphs = torch.compiler.disable(_sdpa_per_document)


# A compiled graph would unroll the loop over documents for these lengths alone; a custom operator
# is one node for all lengths. It is named after the module, because remote code and a checkout may
# both be imported. It has no backward: graphs of the whole model train on the grid, and those of
# layers compiled one by one are broken by the function above.
@torch.library.custom_op(
    f"{re.sub(r'[^0-9a-zA-Z]', '_', __name__)}::sdpa_per_document", mutates_args=()
)
def sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(total_tokens, heads, head size) three times -> the same, attended within documents."""
    return _sdpa_per_document(q, k, v, cu_seqlens.tolist()).contiguous()


@sdpa_per_document.register_fake
def sdpa_per_document_shape(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """What the operator returns, without values."""
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _sdpa_blockwise(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int) -> Tensor:
    mask = plan.local_mask
    if plan.chunk is None:
        return _sdpa_of_blocks(q, k, v, mask, window, 0)
    for number, part in enumerate(mask.split(plan.chunk // LOCAL_BLOCK)):
        start = number * plan.chunk
        # These queries are not needed again: the result takes their place.
        q[start : start + plan.chunk] = _sdpa_of_blocks(q, k, v, part, window, start)
    return q


def _sdpa_of_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int, start: int
) -> Tensor:
    """Attention of the queries in the mask's blocks, the first of which begins at `start`."""
    stop, step = start + len(mask) * LOCAL_BLOCK, LOCAL_BLOCK
    real = min(stop, len(q)) - start
    q = _rows(q, start, stop).unflatten(0, (-1, step)).transpose(1, 2)
    # Blocks share keys with their neighbors: these are views that overlap, (blocks, heads, block +
    # 2 * window, head size).
    k, v = (
        _rows(x, start - window, stop + window).unfold(0, step + 2 * window, step).transpose(2, 3)
        for x in (k, v)
    )
    out = dot_product_attention(q, k, v, mask)
    return out.transpose(1, 2).flatten(0, 1)[:real]


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Rows of x from start to stop, zeros before its first and after its last."""
    if not torch.compiler.is_compiling() and start >= 0 and stop <= len(x):
        return x[start:stop]  # F.pad would copy it
    return F.pad(x, (0, 0, 0, 0, -start, stop - len(x)))  # a negative amount cuts rows off


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention, by plain matrix products where these are the faster way.

    Args:
        q: (batch, heads, queries, head size).
        k, v: (batch, heads, keys, head size).
        mask: additive, (batch, 1, queries, keys); in a compiled graph also a boolean one.
    """
    if runs_eagerly_without_gradients() and by_products(q, q.dtype):
        return products(q * q.shape[-1] ** -0.5, k, v, mask)
    if q.device.type == "mps":  # where torch 2.11 misreads views (pytorch/pytorch#181133)
        q, k, v = (x.contiguous() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """torch's own FlashAttention for variable lengths. CUDA, bf16 or fp16."""
    sides = (-1, -1) if window is None else (window, window)
    lengths = plan.stream.cu_seqlens, plan.stream.cu_seqlens, plan.longest, plan.longest
    return varlen_attn(q, k, v.to(q.dtype), *lengths, window_size=sides)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """The variable-length kernel of the flash-attn package, or of its replacement from the Hub."""
    (_, varlen, *_), _ = lazy_import_flash_attention(plan.backend)
    out = varlen(
        q,
        k,
        v.to(q.dtype),
        cu_seqlens_q=plan.stream.cu_seqlens,
        cu_seqlens_k=plan.stream.cu_seqlens,
        max_seqlen_q=plan.longest,
        max_seqlen_k=plan.longest,
        **({} if window is None else {"window_size": (window, window)}),
    )
    return out[0] if isinstance(out, tuple) else out


@functools.cache
def compiled_flex_attention():
    """The kernel; uncompiled, it would form all scores at once."""
    return torch.compile(torch_flex_attention, dynamic=True)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """torch's flex_attention, compiled. Not on the CPU."""
    q, k, v = (x.to(q.dtype).transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = compiled_flex_attention()(q, k, v, block_mask=plan.block_masks[window])
    return out.squeeze(0).transpose(0, 1)


def registered_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None, module: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """A function that the user registered with transformers' `AttentionInterface`.

    It gets what transformers' functions get: (rows, heads, length, head size), and a boolean mask
    (rows, 1, length, length), True where a key may be seen. A row is a document, padded on the
    right; where attention weights are returned, it is a row of the input, so that the weights are
    of the input's shape. In that case the weights' rows at padding are whatever the function gives.

    Raises:
        ValueError: if weights are asked for and the function returns none.
    """
    grid = plan.grid
    out, weights = ALL_ATTENTION_FUNCTIONS[plan.backend](
        module,
        grid.spread(q),
        grid.spread(k),
        grid.spread(v.to(q.dtype)),
        grid.visible(window),
        dropout=0.0,
        scaling=q.shape[-1] ** -0.5,
        sliding_window=window,
        is_causal=False,
    )
    if plan.output_attentions and weights is None:
        raise ValueError(
            f"the attention function {plan.backend!r} returns no attention weights. Call "
            "model.set_attn_implementation('eager') for output_attentions."
        )
    return grid.gather(out), weights if plan.output_attentions else None


ATTENTION_BACKENDS = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "varlen_attention": varlen_attention,
    "flash_attention_2": flash_attention,
    "flash_attention_3": flash_attention,
    "flex_attention": flex_attention,
}


def is_built_in(name: str) -> bool:
    """Whether the backend is one of this model's, not a function that somebody registered."""
    return name in ATTENTION_BACKENDS or is_flash(name)
