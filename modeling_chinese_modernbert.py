"""Chinese ModernBERT: an encoder that works on a stream of real tokens.

Notable about it:
- padding is taken out once at the door and put back once at the exit; in between, hidden states
  are (total_tokens, hidden_size) and no layer knows of rows or padding;
- documents in the stream never see each other, in any backend and in either direction;
- every third layer attends globally within its document, the others within a 128-token window;
- RMSNorm before each block, GeGLU feed-forward, RoPE with one base per layer type, no biases in
  the blocks, tied embeddings;
- in training, the MLM head runs on masked tokens only.

After *Chinese ModernBERT with Whole-Word Masking*, arXiv 2510.12285.
"""

import copy
import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    logging,
)
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested

try:
    from .configuration_chinese_modernbert import ChineseModernBertConfig
except ImportError:  # imported from a checkout, where the files are not a package
    from configuration_chinese_modernbert import ChineseModernBertConfig

if TYPE_CHECKING:
    # Never run. transformers saves and fetches the files that it finds imported relatively, and
    # `custom_pipelines` in the configuration of two heads names these.
    from .question_answering_chinese_modernbert import (
        ChineseModernBertQuestionAnsweringPipeline,  # noqa: F401
    )
    from .token_classification_chinese_modernbert import (
        ChineseModernBertTokenClassificationPipeline,  # noqa: F401
    )

logger = logging.get_logger(__name__)


# ---------------------------------------------------------------------------------------------
# The stream: which tokens are real, and where documents begin
# ---------------------------------------------------------------------------------------------


# Tokens that a layer takes at a time where inference runs on a CPU: what lies between its products
# stays in the cache, and below 32 MiB, beyond which the C library maps memory anew each time and a
# quarter of the time goes into page faults. Much fewer would cost as much again, for every product
# rearranges its weights first.
TOKEN_CHUNK = 1024


@dataclass
class TokenStream:
    """Where the real tokens of a batch lie, and which documents they form.

    Attributes:
        batch_shape: (batch, sequence) of the input.
        indices: (total_tokens,) positions of the real tokens in the flattened input, or None
            where every token is real.
        cu_seqlens: (documents + 1,) int32, cumulative lengths: document d is the slice
            `cu_seqlens[d]:cu_seqlens[d + 1]` of the stream.
        bounds: the same numbers as Python integers, read from the device once a forward.
        document: (total_tokens,) number of the document that each token belongs to.
        positions: (total_tokens,) position of each token for RoPE.

    What the layers share is made once a forward by `prepare`:
        backend: name of the attention function that the layers call.
        local_mask: of blockwise local attention, or None where no document outgrows the window.
        block_masks: of flex_attention, by window.
        grid: (documents, longest) places of the tokens of each document, `total_tokens` where it
            is over; or None where no backend wants it.
        chunk: tokens that a layer takes at a time, or None for all.
    """

    batch_shape: tuple[int, int]
    indices: Tensor | None
    cu_seqlens: Tensor
    bounds: list[int]
    document: Tensor
    positions: Tensor
    backend: str = "sdpa"
    local_mask: Tensor | None = None
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict)
    grid: Tensor | None = None
    chunk: int | None = None
    _extent: Tensor | None = None

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest document."""
        if self._extent is not None:
            return self._extent.shape[0]
        return max(end - start for start, end in self.documents())

    def documents(self) -> list[tuple[int, int]]:
        """(start, end) of each document in the stream."""
        return list(zip(self.bounds[:-1], self.bounds[1:], strict=True))

    def unpad(self, x: Tensor | None) -> Tensor | None:
        """(batch, sequence, ...) -> (total_tokens, ...); None stays None."""
        if x is None:
            return None
        x = x.reshape(-1, *x.shape[2:])
        return x if self.indices is None else x[self.indices]

    @torch.compiler.disable  # its shapes follow the padding, not the tokens
    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(total_tokens, ...) -> (batch, sequence, ...), `value` where there was padding."""
        batch, sequence = self.batch_shape
        if self.indices is not None:
            padded = x.new_full((batch * sequence, *x.shape[1:]), value)
            x = padded.index_copy(0, self.indices, x)
        return x.view(batch, sequence, *x.shape[1:])

    def in_chunks(
        self, function: Callable[..., Tensor | tuple[Tensor, ...]], *tensors: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """What a function gives that treats each token, a row of all the tensors, by itself."""
        if self.chunk is None or len(tensors[0]) <= self.chunk:
            return function(*tensors)
        wholes, start = None, 0
        for pieces in zip(*(x.split(self.chunk) for x in tensors), strict=True):
            results = function(*pieces)
            alone = isinstance(results, Tensor)
            results = (results,) if alone else results
            if wholes is None:
                wholes = tuple(x.new_empty(len(tensors[0]), *x.shape[1:]) for x in results)
            for whole, result in zip(wholes, results, strict=True):
                whole[start : start + len(result)] = result
            start += self.chunk
        return wholes[0] if alone else wholes

    def prepare(
        self, backend: str, windows: set[int | None], dtype: torch.dtype, compiled: bool
    ) -> None:
        """Makes what the layers of a forward share.

        Args:
            backend: name of the attention function.
            windows: tokens that layers see to each side; None for those that see all.
            dtype: of queries and keys.
            compiled: whether the layers run in a compiled graph. It has to hold for every batch,
                so it takes the general way everywhere, and knows sizes from tensors alone.
        """
        self.backend = backend
        if self.positions.device.type == "cpu" and not compiled and not torch.is_grad_enabled():
            self.chunk = TOKEN_CHUNK
        window = max(windows - {None}, default=None)
        if backend == "sdpa" and window is not None and (compiled or self.max_seqlen > window + 1):
            # A graph for one block would not do for more: at least two, if it shall serve all.
            blocks = max(-(-len(self.document) // LOCAL_BLOCK), 1 + compiled)
            self.local_mask = self._local_mask(window, LOCAL_BLOCK, blocks, dtype)
        if backend == "flex_attention":
            self.block_masks = {window: self._block_mask(window) for window in windows}
        known = backend in ATTENTION_BACKENDS or is_flash(backend)
        if not known or (compiled and (backend == "eager" or torch.is_grad_enabled())):
            self.grid = self._grid(1 + compiled)
        if compiled:
            self._extent = torch.empty(self.max_seqlen, 0)
            for x in (
                *(self.cu_seqlens, self.document, self.positions),
                *(self.local_mask, self.grid, self._extent),
            ):
                if x is not None:
                    torch._dynamo.maybe_mark_dynamic(x, 0)
            if self.grid is not None:
                torch._dynamo.maybe_mark_dynamic(self.grid, 1)

    def _local_mask(self, window: int, block: int, blocks: int, dtype: torch.dtype) -> Tensor:
        """Additive mask of blockwise local attention.

        Returns (blocks, 1, block, block + 2 * window): 0 where a query of the block may see the
        key, -inf elsewhere.
        """
        device = self.positions.device
        padded = blocks * block
        filler = padded - len(self.document)
        document = F.pad(self.document, (window, filler + window), value=-1)
        of_query = document[window : window + padded].view(-1, block, 1)
        of_key = document.unfold(0, block + 2 * window, block).unsqueeze(1)
        offset = torch.arange(block, device=device)[:, None] + window
        distance = (offset - torch.arange(block + 2 * window, device=device)).abs()
        # The filler behind the last token shares the document -1, so each of its rows has
        # something to attend to: an all-masked row would send NaN back through the keys.
        allowed = (of_query == of_key) & (distance <= window)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        return mask.masked_fill_(~allowed, -math.inf).unsqueeze(1)

    def _block_mask(self, window: int | None) -> BlockMask:
        """flex_attention's mask.

        The keys that a block of queries can see lie in one stretch, from the first document's
        first (or the window's) to the last document's last, so the blocks to visit are found in
        time linear in the tokens; which of their pairs count is decided within.
        """
        total, device = len(self.document), self.positions.device
        blocks = -(-total // FLEX_BLOCK)
        token = torch.arange(total, device=device)
        first = self.cu_seqlens.long()[self.document]
        last = self.cu_seqlens.long()[self.document + 1] - 1
        if window is not None:
            first, last = first.maximum(token - window), last.minimum(token + window)
        filler = blocks * FLEX_BLOCK - total
        # Tokens behind the last see its block alone, so that their rows are not empty.
        first = F.pad(first, (0, filler), value=total - 1).view(blocks, FLEX_BLOCK).amin(1)
        last = F.pad(last, (0, filler), value=total - 1).view(blocks, FLEX_BLOCK).amax(1)
        begin, end = first // FLEX_BLOCK, last // FLEX_BLOCK
        document = F.pad(self.document, (0, filler), value=-1)

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

    def _grid(self, smallest: int) -> Tensor:
        """Of at least so many rows and columns: a graph for one would not do for more."""
        starts, ends = self.cu_seqlens[:-1, None].long(), self.cu_seqlens[1:, None].long()
        longest = max(self.max_seqlen, smallest)
        place = starts + torch.arange(longest, device=starts.device)
        grid = place.where(place < ends, len(self.document))
        return F.pad(grid, (0, 0, 0, max(0, smallest - len(grid))), value=len(self.document))

    def to_grid(self, x: Tensor) -> Tensor:
        """(total_tokens, heads, head size) -> (documents, heads, longest, head size), 0-filled."""
        return F.pad(x, (0, 0, 0, 0, 0, 1))[self.grid].transpose(1, 2)

    def from_grid(self, x: Tensor) -> Tensor:
        """The way back."""
        within = torch.arange(len(self.document), device=x.device)
        within = within - self.cu_seqlens.long()[self.document]
        return x.transpose(1, 2)[self.document, within]

    def grid_mask(self, window: int | None) -> Tensor:
        """(documents, 1, longest, longest), True where a query may see a key.

        Rows behind a document's end see everything: a row without a key gives NaN.
        """
        place = torch.arange(self.grid.shape[1], device=self.grid.device)
        real = self.grid < len(self.document)
        allowed = real[:, None, :].expand(-1, len(place), -1)
        if window is not None:
            allowed = allowed & ((place[:, None] - place[None, :]).abs() <= window)
        return (allowed | ~real[:, :, None]).unsqueeze(1)


def make_stream(
    batch_shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> TokenStream:
    """Finds the real tokens and the document borders of a batch.

    Three forms of input are understood:
    - padded: `attention_mask` (batch, sequence), 0 at padding on either side; a row is a document;
    - packed: `position_ids` (batch, sequence) that restart at 0; a document begins at each 0;
    - flattened: `cu_seqlens` (documents + 1,) over a batch of one row, as transformers' flattening
      collator and sentence-transformers give them.
    Padding is as if it were not there: it takes up no positions.

    Raises:
        ValueError: on shapes that do not fit, or `cu_seqlens` that contradict the input.
    """
    batch, sequence = batch_shape
    total = batch * sequence
    if attention_mask is not None and tuple(attention_mask.shape) != (batch, sequence):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(batch, sequence)}:"
            " one entry a token, 0 at padding."
        )
    if position_ids is not None:
        if tuple(position_ids.shape) not in ((batch, sequence), (1, sequence)):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}, expected "
                f"{(batch, sequence)} or {(1, sequence)}."
            )
        position_ids = position_ids.expand(batch, sequence).reshape(-1)

    indices = None
    if attention_mask is not None:
        real = attention_mask.reshape(-1) != 0
        if not real.all():
            if cu_seqlens is not None:
                raise ValueError(
                    "attention_mask hides tokens, but cu_seq_lens_q counts every one. Flattened "
                    "input has no padding: leave attention_mask out."
                )
            indices = real.nonzero().squeeze(1)
            total = len(indices)
    if total == 0:
        raise ValueError("the batch holds no real token: it is empty, or attention_mask all zero.")

    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        if batch != 1 or bounds[:1] != [0] or bounds[-1] != total or sorted(bounds) != bounds:
            raise ValueError(
                f"cu_seq_lens_q must rise from 0 to the {total} tokens of one flattened row "
                f"(batch size 1), got {len(bounds)} entries from {bounds[:1]} to {bounds[-1:]} "
                f"for batch size {batch}."
            )
        cu_seqlens = cu_seqlens.to(device=device, dtype=torch.int32)
    else:
        row = (torch.arange(total, device=device) if indices is None else indices) // sequence
        begins = torch.ones(total, dtype=torch.bool, device=device)
        begins[1:] = row[1:] != row[:-1]
        if position_ids is not None:
            begins |= (position_ids if indices is None else position_ids[indices]) == 0
        starts = begins.nonzero().squeeze(1)
        cu_seqlens = F.pad(starts, (0, 1), value=total).to(torch.int32)
        bounds = cu_seqlens.tolist()

    numbers = torch.arange(len(bounds) - 1, device=device)
    document = numbers.repeat_interleave(cu_seqlens.diff().long(), output_size=total)
    if position_ids is None:
        positions = torch.arange(total, device=device) - cu_seqlens.long()[document]
    else:
        positions = position_ids if indices is None else position_ids[indices]
    return TokenStream((batch, sequence), indices, cu_seqlens, bounds, document, positions)


# ---------------------------------------------------------------------------------------------
# Attention: one function, with backends behind it
# ---------------------------------------------------------------------------------------------


def eager_attention(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None):
    """The reference: each document by itself, softmax in fp32. Also gives the weights."""
    if stream.grid is not None:  # all documents at once, for a compiled graph
        q, k, v = (stream.to_grid(x.to(q.dtype)) for x in (q, k, v))
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~stream.grid_mask(window), -math.inf)
        return stream.from_grid(scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v), None
    outputs, weights = [], []
    for start, end in stream.documents():
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * q.shape[-1] ** -0.5
        if window is not None:
            position = torch.arange(end - start, device=q.device)
            too_far = (position[:, None] - position[None, :]).abs() > window
            scores = scores.masked_fill(too_far, -math.inf)
        weight = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        outputs.append(torch.einsum("hqk,khd->qhd", weight, v[start:end]))
        weights.append(weight)
    return torch.cat(outputs), weights


# Queries of one block of local attention; their keys are the block and a window to each side.
LOCAL_BLOCK = 128


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None):
    """torch's scaled_dot_product_attention: local layers blockwise, global ones per document."""
    # Under autocast q and k come out of RoPE and v out of a projection: make them one type.
    k, v = k.to(q.dtype), v.to(q.dtype)
    if window is not None and stream.local_mask is not None:
        return _sdpa_blockwise(q, k, v, stream, window), None
    if not torch.compiler.is_compiling():
        return _sdpa_per_document(q, k, v, stream.bounds), None
    if stream.grid is None:
        return sdpa_per_document(q, k, v, stream.cu_seqlens), None
    q, k, v = (stream.to_grid(x) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=stream.grid_mask(None))
    return stream.from_grid(out), None


def _sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    lengths = {end - start for start, end in itertools.pairwise(bounds)}
    if len(lengths) == 1:  # uniform lengths go as one batch
        q, k, v = (x.view(len(bounds) - 1, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    outputs = [
        dot_product_attention(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end])
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


# The loop over documents would be unrolled into a graph for these lengths alone. As an operator of
# its own it is one node for all; named by the module, because remote code and a checkout may both
# be imported. It has no backward: training graphs go over the grid.
@torch.library.custom_op(
    f"{re.sub(r'[^0-9a-zA-Z]', '_', __name__)}::sdpa_per_document", mutates_args=()
)
def sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(total_tokens, heads, head size) three times -> the same, attended within documents."""
    return _sdpa_per_document(q, k, v, cu_seqlens.tolist()).contiguous()


@sdpa_per_document.register_fake
def _(q, k, v, cu_seqlens):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _sdpa_blockwise(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int) -> Tensor:
    mask = stream.local_mask
    if stream.chunk is None:
        return _sdpa_of_blocks(q, k, v, mask, window, 0)
    for number, part in enumerate(mask.split(stream.chunk // LOCAL_BLOCK)):
        start = number * stream.chunk
        # Nobody asks for these queries again: the result takes their place.
        q[start : start + stream.chunk] = _sdpa_of_blocks(q, k, v, part, window, start)
    return q


def _sdpa_of_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int, start: int
) -> Tensor:
    """Attention of the queries in the mask's blocks, the first of which begins at `start`."""
    stop, step = start + len(mask) * LOCAL_BLOCK, LOCAL_BLOCK
    real = min(stop, len(q)) - start
    q = _rows(q, start, stop).unflatten(0, (-1, step)).transpose(1, 2)
    # Blocks share keys with their neighbours: these are views that overlap, (blocks, heads, block +
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
    return F.pad(x, (0, 0, 0, 0, -start, stop - len(x)))  # cuts off where that is less than nothing


@functools.cache
def products_beat_sdpa() -> bool:
    """Whether this CPU multiplies in bf16, but torch's fused kernel makes no use of it.

    The kernel knows AMX. With AVX512-BF16 alone it works at a fifth of the rate of matrix products.
    """
    has = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch's latest versions
    return has.get("avx512_bf16", False) and not has.get("amx_tile", False)


# Scores that attention by plain products forms at a time: 8 MiB in bf16, which stay in the cache.
SCORES = 2**22


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention, by plain matrix products where these are the faster way.

    Args:
        q: (batch, heads, queries, head size).
        k, v: (batch, heads, keys, head size).
        mask: additive, (batch, 1, queries, keys).
    """
    by_products = (
        (q.device.type, q.dtype) == ("cpu", torch.bfloat16)
        and runs_eagerly_without_gradients()
        and products_beat_sdpa()
    )
    if not by_products:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    (batch, heads, queries, size), keys = q.shape, max(1, k.shape[2])
    rows = max(1, min(queries, SCORES // keys))
    heads_at_once = max(1, min(heads, SCORES // (keys * rows)))
    entries = max(1, SCORES // (keys * rows * heads))
    out = torch.empty_like(q)
    for entry, head, row in itertools.product(
        range(0, batch, entries), range(0, heads, heads_at_once), range(0, queries, rows)
    ):
        matrices = slice(entry, entry + entries), slice(head, head + heads_at_once)
        block = *matrices, slice(row, row + rows)
        scores = (q[block] * size**-0.5) @ k[matrices].transpose(-1, -2)
        if mask is not None:
            scores += mask[entry : entry + entries, :, row : row + rows]
        out[block] = scores.softmax(-1) @ v[matrices]
    return out


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None):
    """torch's own FlashAttention for variable lengths. CUDA, bf16 or fp16."""
    longest, sides = stream.max_seqlen, (-1, -1) if window is None else (window, window)
    cu_seqlens = stream.cu_seqlens
    return varlen_attn(
        q, k, v.to(q.dtype), cu_seqlens, cu_seqlens, longest, longest, window_size=sides
    ), None


def flash_attention(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None):
    """The variable-length kernel of the flash-attn package, or of its stand-in from the Hub."""
    (_, varlen, *_), _ = lazy_import_flash_attention(stream.backend)
    out = varlen(
        q,
        k,
        v.to(q.dtype),
        cu_seqlens_q=stream.cu_seqlens,
        cu_seqlens_k=stream.cu_seqlens,
        max_seqlen_q=stream.max_seqlen,
        max_seqlen_k=stream.max_seqlen,
        **({} if window is None else {"window_size": (window, window)}),
    )
    return out[0] if isinstance(out, tuple) else out, None


# flex_attention works in blocks of so many queries and keys.
FLEX_BLOCK = 128


@functools.cache
def compiled_flex_attention():
    """The kernel; uncompiled, it would form all scores at once."""
    return torch.compile(torch_flex_attention, dynamic=True)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, stream: TokenStream, window: int | None):
    """torch's flex_attention, compiled. Not on the CPU."""
    q, k, v = (x.to(q.dtype).transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = compiled_flex_attention()(q, k, v, block_mask=stream.block_masks[window])
    return out.squeeze(0).transpose(0, 1), None


ATTENTION_BACKENDS = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "varlen_attention": varlen_attention,
    "flash_attention_2": flash_attention,
    "flash_attention_3": flash_attention,
    "flex_attention": flex_attention,
}


def is_flash(name: str) -> bool:
    """Whether it is one of the names that transformers has for FlashAttention kernels."""
    return is_flash_attention_requested(requested_attention_implementation=name)


# What the model does when it is not told: the fastest backend there is where it runs.
AUTOMATIC = "auto"


def choose_attention(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for a device and the type of queries and keys, and why it is this one.

    Raises:
        ValueError: if the backend that was asked for cannot work there.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if requested == AUTOMATIC:
        if device.type != "cuda":
            return "sdpa", f"the fastest on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "sdpa", "the FlashAttention kernels need an Ampere card or a newer one"
        if not half:
            return "sdpa", (
                f"the FlashAttention kernels do not take {dtype}; they would be several times "
                "faster with dtype=torch.bfloat16, or under autocast"
            )
        if is_flash_attn_3_available():
            return "flash_attention_3", "flash-attn 3 is installed"
        if is_flash_attn_2_available():
            return "flash_attention_2", "flash-attn is installed"
        return "varlen_attention", "torch's own FlashAttention; flash-attn is not installed"
    if requested == "varlen_attention" or is_flash(requested):
        if device.type != "cuda":
            raise ValueError(
                f"{requested!r} needs a CUDA device, but the model is on {device.type}. Move "
                "it, or call model.set_attn_implementation('sdpa')."
            )
        if not half:
            raise ValueError(
                f"{requested!r} takes bf16 or fp16, not {dtype}. Load the model with "
                "dtype=torch.bfloat16, run it under autocast, or call "
                "model.set_attn_implementation('sdpa')."
            )
    if requested == "flex_attention" and device.type == "cpu":
        raise ValueError(
            "'flex_attention' has no backward on the CPU, and is compiled anew for every length "
            "there. Move the model, or call model.set_attn_implementation('sdpa')."
        )
    return requested, "as asked for"


def registered_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, stream: TokenStream):
    """A function that the user registered with transformers' AttentionInterface.

    It gets what transformers' functions get: (documents, heads, length, head size), padded on the
    right, and a boolean mask (documents, 1, length, length), True where a key may be seen.
    """
    attend = ALL_ATTENTION_FUNCTIONS[stream.backend]
    out, weights = attend(
        module,
        stream.to_grid(q),
        stream.to_grid(k),
        stream.to_grid(v.to(q.dtype)),
        stream.grid_mask(module.window),
        dropout=0.0,
        scaling=q.shape[-1] ** -0.5,
        sliding_window=module.window,
        is_causal=False,
    )
    if weights is not None:
        lengths = (end - start for start, end in stream.documents())
        weights = [w[:, :n, :n] for w, n in zip(weights, lengths, strict=True)]
    return stream.from_grid(out.transpose(1, 2)), weights


def rotary_angles(
    config: ChineseModernBertConfig, layer_type: str, stream: TokenStream
) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE, each (total_tokens, 1, head_size), in fp32.

    The halves of a head are the pairs, so both halves of the cosines are the same, and of the sines
    but for the sign, which is minus in the first.

    Computed where they are needed: a buffer would be cast by `.to(bfloat16)`, and comes back
    uninitialised from `from_pretrained` when it is not persistent.
    """
    rope, device = config.rope_parameters[layer_type], stream.positions.device
    magnitude = 1.0
    if rope["rope_type"] == "default":
        exponent = torch.arange(0, config.head_size, 2, dtype=torch.float32, device=device)
        frequencies = rope["rope_theta"] ** (-exponent / config.head_size)
    else:
        # Dynamic scaling goes by each document's own length, so that none moves another.
        lengths = stream.cu_seqlens.diff().long()
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](
            config, device, seq_len=lengths[:, None], layer_type=layer_type
        )
        if frequencies.dim() == 2:
            frequencies = frequencies[stream.document]
    angles = stream.positions.float()[:, None] * frequencies
    cos, sin = (angles.cos() * magnitude)[:, None], (angles.sin() * magnitude)[:, None]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns (total_tokens, ..., head_size) by the angles, in fp32; halves form the pairs."""
    exact = x.float()
    swapped = exact.roll(x.shape[-1] // 2, dims=-1)
    return (exact * cos).addcmul_(swapped, sin).to(x.dtype)


# ---------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------


def _linear(in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Linear:
    """A Linear that carries the standard deviation of its own initialisation.

    transformers skips the initialisation hook of containers in custom code, so the hook has to
    find everything on the leaf.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.init_std = std
    return layer


def _output_std(config: ChineseModernBertConfig) -> float:
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


def runs_eagerly_without_gradients() -> bool:
    """Whether a tensor that nobody reads again may be overwritten: a graph plans that by itself."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class ChineseModernBertRMSNorm(nn.RMSNorm):
    """torch's, which has no kernel of its own on a CPU and makes several copies in fp32 there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not runs_eagerly_without_gradients():
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(length.square() / x.shape[-1] + self.eps)
        return (x * scale).mul_(self.weight).to(x.dtype)


class ChineseModernBertEmbeddings(nn.Module):
    """Token embeddings, normalised."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens,) ids, or (tokens, hidden_size) embeddings -> (tokens, hidden_size)."""
        embedded = tokens if tokens.is_floating_point() else self.tok_embeddings(tokens)
        return self.drop(self.norm(embedded))


class ChineseModernBertAttention(nn.Module):
    """Multi-head self-attention over a token stream, global or local."""

    def __init__(self, config: ChineseModernBertConfig, layer_type: str):
        super().__init__()
        self.config = config
        self.window = config.local_attention // 2 if layer_type == "sliding_attention" else None
        self.Wqkv = _linear(config.hidden_size, 3 * config.hidden_size, config.initializer_range)
        self.Wo = _linear(config.hidden_size, config.hidden_size, _output_std(config))
        self.drop = nn.Dropout(config.attention_dropout)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, hidden_size) -> turned queries and keys, and values: (tokens, heads, size)."""
        qkv = self.Wqkv(x).view(len(x), 3, -1, self.config.head_size)
        q, k = rotate(qkv[:, :2], cos[:, None], sin[:, None]).unbind(dim=1)
        return q, k, qkv[:, 2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, stream: TokenStream):
        """(total_tokens, heads, head_size) -> the same, and the backend's weights or None."""
        attend = ATTENTION_BACKENDS.get(stream.backend)
        if is_flash(stream.backend):
            attend = flash_attention
        if attend is not None:
            return attend(q, k, v, stream, self.window)
        return registered_attention(self, q, k, v, stream)

    def output(self, attended: Tensor) -> Tensor:
        """(tokens, hidden_size) -> the same."""
        return self.drop(self.Wo(attended))


def is_plain_linear(module: nn.Module) -> bool:
    """Whether nothing is around torch's layer: adapter, quantiser, offloading or hook."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.bias is None
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )


class ChineseModernBertMLP(nn.Module):
    """GeGLU: a gated feed-forward block."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        self.Wi = _linear(
            config.hidden_size, 2 * config.intermediate_size, config.initializer_range
        )
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = _linear(config.intermediate_size, config.hidden_size, _output_std(config))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled() and is_plain_linear(self.Wi):
            # Two narrow products take less time there than one wide.
            hidden, gate = (F.linear(x, half) for half in self.Wi.weight.chunk(2))
        else:
            hidden, gate = self.Wi(x).chunk(2, dim=-1)
        active = self.act(hidden)
        # Nothing is kept for a backward pass: a place in memory less.
        gated = active.mul_(gate) if runs_eagerly_without_gradients() else active * gate
        return self.Wo(self.drop(gated))


class ChineseModernBertLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, config: ChineseModernBertConfig, layer_idx: int):
        super().__init__()
        self.layer_type = config.layer_types[layer_idx]
        # The first layer reads embeddings that are normalised already.
        normalised = layer_idx == 0
        self.attn_norm = (
            nn.Identity()
            if normalised
            else ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)
        )
        self.attn = ChineseModernBertAttention(config, self.layer_type)
        self.mlp_norm = ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = ChineseModernBertMLP(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], stream: TokenStream):
        """(total_tokens, hidden_size) -> the same, and the attention weights or None."""
        q, k, v = stream.in_chunks(self.before_attention, x, *angles)
        attended, weights = self.attn.attend(q, k, v, stream)
        attended = attended.flatten(1).contiguous()  # else a compiled piece is made for each layout
        return stream.in_chunks(self.after_attention, x, attended), weights

    def __getstate__(self) -> dict:
        """Without what `compile` put in place of methods: it would tie a copy to these weights."""
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("before_attention", "after_attention")}

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return self.attn.project(self.attn_norm(x), cos, sin)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn.output(attended)
        return x + self.mlp(self.mlp_norm(x))


# ---------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------


class ChineseModernBertPreTrainedModel(PreTrainedModel):
    config_class = ChineseModernBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChineseModernBertEmbeddings", "ChineseModernBertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: ChineseModernBertConfig):
        if hasattr(config, "custom_pipelines"):  # perhaps from a model with another head
            config = copy.deepcopy(config)
            config.set_pipelines()
        super().__init__(config)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers searches the source for its own dispatch; ours is ATTENTION_BACKENDS.
        return True

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """Adds to transformers' check the automatic choice and torch's varlen_attn."""
        if requested_attention is None:
            return AUTOMATIC
        if requested_attention in (AUTOMATIC, "varlen_attention"):
            return requested_attention
        known = [AUTOMATIC, *ATTENTION_BACKENDS, *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        if requested_attention not in known or requested_attention.startswith("paged|"):
            raise ValueError(
                f"attn_implementation {requested_attention!r} is not known; choose one of "
                f"{', '.join([AUTOMATIC, *ATTENTION_BACKENDS])}, or register a function of your "
                "own with transformers.AttentionInterface."
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def attention_backend(self) -> tuple[str, str]:
        """The attention backend that a forward uses here and now, and why it is this one.

        It depends on the device, on the weights' type and on autocast.

        Raises:
            ValueError: if the backend that was asked for cannot work there; with the mend.
        """
        return choose_attention(
            self.config._attn_implementation, self.device, self.attention_dtype()
        )

    def attention_dtype(self) -> torch.dtype:
        """The type of queries and keys here and now."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.dtype

    def compile(self, *args, **kwargs) -> None:
        """Compiles what each token goes through by itself, and leaves the rest as it is.

        The pieces are the same in all layers, so there are a few graphs in all, made within seconds
        whatever the depth, and they hold for every batch. Attention runs uncompiled, in any
        backend; inference on a CPU still goes in chunks, which is why this is the fastest way
        there. `torch.compile(model)` makes one graph of the whole model instead. Copies of the
        model are not compiled.

        Args:
            args, kwargs: of `torch.compile`; `dynamic` is True unless given.
        """
        kwargs.setdefault("dynamic", True)
        encoder = self.base_model
        encoder.embeddings.compile(*args, **kwargs)
        encoder.final_norm.compile(*args, **kwargs)
        for layer in encoder.layers:
            for name in ("before_attention", "after_attention"):
                setattr(layer, name, torch.compile(getattr(layer, name), *args, **kwargs))

    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal at two standard deviations, after ModernBERT; norms at one."""
        if isinstance(module, nn.Linear | nn.Embedding):
            std = getattr(module, "init_std", self.config.initializer_range)
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)


class ChineseModernBertModel(ChineseModernBertPreTrainedModel):
    """The bare encoder."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        self.embeddings = ChineseModernBertEmbeddings(config)
        self.layers = nn.ModuleList(
            ChineseModernBertLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_norm = ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.tok_embeddings = value

    @torch.compiler.disable  # shapes that follow the data; what comes out has one shape for all
    def open_stream(
        self,
        compiled: bool,
        output_attentions: bool | None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
    ) -> tuple[TokenStream, Tensor | None, Tensor | None]:
        """Checks a batch, chooses the attention backend, and takes padding and rows away.

        Args:
            compiled: whether what follows is a compiled graph.
            output_attentions, input_ids, …: as in `forward`.

        Returns:
            The stream, `input_ids` (total_tokens,) and `inputs_embeds` (total_tokens, hidden_size);
            the one that was not given is None.

        Raises:
            ValueError: on contradictory input; the message says what fits.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if (cu_seq_lens_q is None) != (cu_seq_lens_k is None) or (
            cu_seq_lens_k is not cu_seq_lens_q and not torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        ):
            raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together, and equal.")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(
                f"input_ids must be (batch, sequence), got shape {tuple(input_ids.shape)}."
            )
        if inputs_embeds is not None and inputs_embeds.dim() != 3:
            raise ValueError(
                "inputs_embeds must be (batch, sequence, hidden_size), got shape "
                f"{tuple(inputs_embeds.shape)}."
            )
        backend, reason = self.attention_backend()
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and backend in ATTENTION_BACKENDS and backend != "eager":
            raise ValueError(
                f"The {backend!r} backend does not form attention weights. Call "
                "model.set_attn_implementation('eager') for output_attentions."
            )
        if backend == "sdpa" and self.device.type == "cuda" and reason != "as asked for":
            logger.warning_once(f"Attention is {backend}: {reason}.")
        else:
            logger.info_once(f"Attention is {backend}: {reason}.")

        stream = make_stream(
            tokens.shape[:2], tokens.device, attention_mask, position_ids, cu_seq_lens_q
        )
        windows = {layer.attn.window for layer in self.layers}
        compiled = compiled and not output_attentions
        stream.prepare(backend, windows, self.attention_dtype(), compiled)
        input_ids, inputs_embeds = stream.unpad(input_ids), stream.unpad(inputs_embeds)
        if compiled:
            torch._dynamo.maybe_mark_dynamic(tokens := stream.unpad(tokens), 0)
            input_ids, inputs_embeds = (tokens, None) if inputs_embeds is None else (None, tokens)
        return stream, input_ids, inputs_embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        stream: TokenStream | None = None,
    ) -> BaseModelOutput:
        """Encodes a batch.

        Args:
            input_ids: (batch, sequence) token ids; or give `inputs_embeds`.
            attention_mask: (batch, sequence), 0 at padding, on either side.
            position_ids: (batch, sequence) or (1, sequence). A document begins wherever they are
                0, so packed rows are given by positions that restart.
            inputs_embeds: (batch, sequence, hidden_size) instead of `input_ids`.
            cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) cumulative lengths of a flattened batch
                of one row; an encoder needs both to be the same.
            max_length_q, max_length_k, seq_idx: longest document and document of each token, given
                beside the lengths by some collators; they follow from the lengths and are not read.
            output_attentions: also give the weights, (batch, heads, sequence, sequence) a layer;
                only the eager backend has them.
            output_hidden_states: also give the states (batch, sequence, hidden_size) after the
                embeddings and after each layer; the last one is `last_hidden_state`.
            stream: from `open_stream`, for callers that work on the stream: then input_ids
                are (total_tokens,) or inputs_embeds (total_tokens, hidden_size), every state that
                is returned is (total_tokens, hidden_size), and attention weights are lists of one
                (heads, length, length) a document. Mask, positions and lengths are not read.

        Returns:
            `last_hidden_state` (batch, sequence, hidden_size), zeros at padding.

        Raises:
            ValueError: on contradictory input; the message says what fits.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        padded = stream is None
        if padded:
            stream, input_ids, inputs_embeds = self.open_stream(
                torch.compiler.is_compiling(),
                output_attentions,
                input_ids,
                attention_mask,
                position_ids,
                inputs_embeds,
                cu_seq_lens_q,
                cu_seq_lens_k,
            )
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        x = stream.in_chunks(self.embeddings, tokens)
        angles = {
            layer_type: rotary_angles(self.config, layer_type, stream)
            for layer_type in self.config.rope_parameters
        }

        hidden_states, attentions = [], []
        for layer in self.layers:
            if output_hidden_states:
                hidden_states.append(x)
            x, weights = layer(x, angles[layer.layer_type], stream)
            if output_attentions:
                attentions.append(weights)
        x = stream.in_chunks(self.final_norm, x)
        outputs = BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        if padded:
            return BaseModelOutput(stream.pad(x), **pad_details(outputs, stream))
        return outputs


def pad_details(outputs: BaseModelOutput, stream: TokenStream) -> dict[str, tuple[Tensor, ...]]:
    """The hidden states and attentions that were asked for, from stream to padded form."""
    details = {}
    if outputs.hidden_states is not None:
        details["hidden_states"] = tuple(stream.pad(x) for x in outputs.hidden_states)
    if outputs.attentions is not None:
        details["attentions"] = tuple(_dense_attentions(x, stream) for x in outputs.attentions)
    return details


def _dense_attentions(weights: list[Tensor], stream: TokenStream) -> Tensor:
    """Per-document weights (heads, length, length) -> (batch, heads, sequence, sequence)."""
    batch, sequence = stream.batch_shape
    dense = weights[0].new_zeros(batch, weights[0].shape[0], sequence, sequence)
    for weight, (start, end) in zip(weights, stream.documents(), strict=True):
        place = torch.arange(start, end, device=dense.device)
        if stream.indices is not None:
            place = stream.indices[start:end]
        if end > start:
            column = place % sequence
            dense[int(place[0]) // sequence][:, column[:, None], column[None, :]] = weight
    return dense


# ---------------------------------------------------------------------------------------------
# Heads
# ---------------------------------------------------------------------------------------------

# Labels that count for nothing.
IGNORED = -100


def _per_item(total: Tensor, items: Tensor | int, num_items_in_batch: Tensor | int | None):
    """A summed loss over the items of the whole optimizer step, or else over those of this batch.

    Sums that are divided by the step's items add up to the loss of one large batch, however the
    step is split over accumulated batches and processes. Without an item it is 0, not NaN.
    """
    count = items if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def token_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Cross-entropy in fp32 of (..., classes) logits over the labels (...) that are not ignored."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return _per_item(total, (labels != IGNORED).sum(), num_items_in_batch)


@torch.compiler.disable
def stream_labels(
    labels: Tensor | None, stream: TokenStream, compiled: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Labels (batch, sequence) -> (total_tokens,), and the (labelled,) places that are not ignored.

    Without labels, both are None.

    Raises:
        ValueError: on labels of another shape.
    """
    if labels is None:
        return None, None
    if tuple(labels.shape) != tuple(stream.batch_shape):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected {tuple(stream.batch_shape)}: one "
            "entry a token, -100 where there is nothing to predict."
        )
    labels = stream.unpad(labels)
    places = (labels != IGNORED).nonzero().squeeze(1)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(labels, 0)
        torch._dynamo.maybe_mark_dynamic(places, 0)
    return labels, places


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """What transformers takes the task for when the configuration does not say."""
    if num_labels == 1:
        return "regression"
    return (
        "multi_label_classification"
        if labels.is_floating_point()
        else "single_label_classification"
    )


def document_loss(
    logits: Tensor, labels: Tensor, problem_type: str, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """The loss of (documents, num_labels) logits for one of transformers' three problem types.

    Raises:
        ValueError: on labels whose number does not fit.
    """
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
    total = loss(logits.float(), labels.view_as(logits).float(), reduction="sum")
    return _per_item(total, logits.numel(), num_items_in_batch)


def answers_inside(positions: Tensor, logits: Tensor) -> Tensor:
    """(batch,) positions, IGNORED where they lie outside the (batch, sequence) logits."""
    positions = positions.view(-1)
    return positions.where((positions >= 0) & (positions < logits.shape[1]), IGNORED)


def pool_documents(x: Tensor, stream: TokenStream, pooling: str) -> Tensor:
    """(total_tokens, hidden_size) -> (documents, hidden_size): each one's mean, or first token.

    Works on the stream, so padding on either side and packing make no difference.
    """
    if pooling == "cls":
        return x[stream.cu_seqlens[:-1].long()]
    lengths = stream.cu_seqlens.diff().long()
    return torch.segment_reduce(x.float(), "mean", lengths=lengths, axis=0).to(x.dtype)


class ChineseModernBertPredictionHead(nn.Module):
    """Dense, activation and norm before the last projection of every head."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        self.dense = _linear(config.hidden_size, config.hidden_size, config.initializer_range)
        self.act = ACT2FN[config.hidden_activation]
        self.norm = ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the projection is bf16 and the norm's weight fp32; the norm wants one type.
        return self.norm(self.act(self.dense(x)).to(self.norm.weight.dtype))


class ChineseModernBertWithHead(ChineseModernBertPreTrainedModel):
    """The encoder as `model`, and the projection of pretraining as `head`: what all heads share."""

    # Losses are normalised by num_items_in_batch: Trainer must not divide them again.
    accepts_loss_kwargs = True

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        self.model = ChineseModernBertModel(self.config)
        self.head = ChineseModernBertPredictionHead(config)

    @torch.compiler.disable
    def open(
        self, compiled: bool, labels: Tensor | None, kwargs: dict, *inputs: Tensor | None
    ) -> tuple[dict, Tensor | None, Tensor | None]:
        """From a batch to the stream. Heads work on that, so that padding costs them nothing.

        Args:
            compiled: whether what follows is a compiled graph.
            labels: (batch, sequence) or None.
            kwargs: further arguments of `ChineseModernBertModel.forward`.
            inputs: `input_ids`, `attention_mask`, `position_ids` and `inputs_embeds`.

        Returns:
            What to call the encoder with, and what `stream_labels` makes of the labels.
        """
        options = dict(kwargs)
        lengths = [options.pop(name, None) for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
        for name in ("max_length_q", "max_length_k", "seq_idx"):
            options.pop(name, None)
        stream, input_ids, inputs_embeds = self.model.open_stream(
            compiled, options.get("output_attentions"), *inputs, *lengths
        )
        encoder_inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "stream": stream}
        return encoder_inputs | options, *stream_labels(labels, stream, compiled)


class ChineseModernBertForMaskedLM(ChineseModernBertWithHead):
    """The encoder with the masked-language-modelling head it is pretrained with."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Predicts masked tokens. Takes what `ChineseModernBertModel.forward` takes, and:

        Args:
            labels: (batch, sequence) original ids of masked tokens, -100 elsewhere.
            num_items_in_batch: masked tokens of the whole optimizer step (all accumulated batches
                and processes); the loss is the sum over this batch divided by it. Left out, it is
                the mean over this batch.

        Returns:
            `loss`, computed on masked tokens only, 0 where nothing is masked; `logits` (batch,
            sequence, vocab_size), zeros at padding. In training with labels, `logits` is None:
            forming them for the other 70 to 85 % of tokens would be most of the cost of a small
            model.

        Raises:
            ValueError: on contradictory input.
        """
        inputs, labels, labelled = self.open(
            torch.compiler.is_compiling(),
            labels,
            kwargs,
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
        )
        outputs, stream = self.model(**inputs, return_dict=True), inputs["stream"]
        x = outputs.last_hidden_state
        loss = logits = None
        if labels is None or not self.training:
            logits = self.decoder(self.head(x))
            if labels is not None:
                loss = token_loss(logits, labels, num_items_in_batch)
        else:
            predicted = self.decoder(self.head(x[labelled]))
            loss = token_loss(predicted, labels[labelled], num_items_in_batch)
        return MaskedLMOutput(
            loss=loss,
            logits=None if logits is None else stream.pad(logits),
            **pad_details(outputs, stream),
        )


class ChineseModernBertForFineTuning(ChineseModernBertWithHead):
    """The encoder, its head, and a fresh classifier: what the fine-tuning models share."""

    def __init__(self, config: ChineseModernBertConfig, num_labels: int):
        super().__init__(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., labels)."""
        return self.classifier(self.drop(self.head(x)))

    def classify_documents(self, inputs: dict) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        """Logits (documents, labels) of pooled documents, and states and attentions asked for.

        Args:
            inputs: the first of what `open` gives.

        Raises:
            ValueError: on a row without a real token.
        """
        outputs, stream = self.model(**inputs, return_dict=True), inputs["stream"]
        batch, documents = stream.batch_shape[0], len(stream.cu_seqlens) - 1
        if documents < batch:
            raise ValueError(
                f"only {documents} of the {batch} rows hold a real token: attention_mask is all "
                "zero in the others, so there is nothing to judge in them. Leave them out."
            )
        pooled = pool_documents(outputs.last_hidden_state, stream, self.config.classifier_pooling)
        return self.classify(pooled), pad_details(outputs, stream)


class ChineseModernBertForSequenceClassification(ChineseModernBertForFineTuning):
    """The encoder with a head for a document or a pair: classes, several labels, or numbers."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Judges documents. Takes what `ChineseModernBertModel.forward` takes, and:

        Args:
            labels: (documents,) classes, as integers; (documents, num_labels) zeros and ones for
                `multi_label_classification`; (documents,) or (documents, num_labels) numbers for
                `regression`. Each row is a document, or in packed and flattened input each of its
                documents.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (documents, num_labels).

        `config.problem_type` decides the loss. Left out, it is what transformers takes it for, and
        is noted in the configuration: regression for one label, one class of several for integer
        labels, several labels for floating-point ones.

        Raises:
            ValueError: on contradictory input, a row without tokens, or labels that do not fit.
        """
        inputs, _, _ = self.open(
            torch.compiler.is_compiling(),
            None,
            kwargs,
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
        )
        logits, details = self.classify_documents(inputs)
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = infer_problem_type(self.config.num_labels, labels)
            loss = document_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits, **details)


class ChineseModernBertForMultipleChoice(ChineseModernBertForFineTuning):
    """The encoder with a head that picks one of several documents."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config, 1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """Picks a choice. Inputs as for `ChineseModernBertModel.forward`, one dimension more:

        Args:
            input_ids, attention_mask, position_ids: (batch, choices, sequence).
            inputs_embeds: (batch, choices, sequence, hidden_size).
            labels: (batch,) index of the right choice.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (batch, choices).

        Raises:
            ValueError: on input of another shape, or a choice without tokens.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.dim() != (3 if inputs_embeds is None else 4):
            raise ValueError(
                "multiple choice wants input_ids (batch, choices, sequence) or inputs_embeds "
                "(batch, choices, sequence, hidden_size), got "
                f"{'nothing' if given is None else tuple(given.shape)}."
            )
        flat = (
            None if x is None else x.flatten(0, 1)
            for x in (input_ids, attention_mask, position_ids, inputs_embeds)
        )
        inputs, _, _ = self.open(torch.compiler.is_compiling(), None, kwargs, *flat)
        logits, details = self.classify_documents(inputs)
        logits = logits.view(given.shape[:2])
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **details)


class ChineseModernBertForTokenClassification(ChineseModernBertForFineTuning):
    """The encoder with a head for every token, such as for named entities."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(copy.deepcopy(config), config.num_labels)
        self.config.set_pipelines("token-classification", "ner")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Labels tokens. Takes what `ChineseModernBertModel.forward` takes, and:

        Args:
            labels: (batch, sequence) classes, -100 where none is wanted.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (batch, sequence, num_labels), zeros at padding.

        Raises:
            ValueError: on contradictory input.
        """
        inputs, labels, _ = self.open(
            torch.compiler.is_compiling(),
            labels,
            kwargs,
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
        )
        outputs, stream = self.model(**inputs, return_dict=True), inputs["stream"]
        logits = self.classify(outputs.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=stream.pad(logits), **pad_details(outputs, stream)
        )


class ChineseModernBertForQuestionAnswering(ChineseModernBertForFineTuning):
    """The encoder with a head that finds an answer's first and last token."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(copy.deepcopy(config), 2)
        self.config.set_pipelines("question-answering")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Finds answers. Takes what `ChineseModernBertModel.forward` takes, and:

        Args:
            start_positions, end_positions: (batch,) first and last token of the answer; one that
                lies outside the sequence is ignored.

        Returns:
            `loss`, the mean of the two cross-entropies; `start_logits` and `end_logits` (batch,
            sequence), lowest at padding, so that its amount changes no probability.

        Trainer counts nothing named otherwise than `labels`, so accumulated batches weigh the same
        whatever their size, as with every question-answering model of transformers.

        Raises:
            ValueError: on contradictory input.
        """
        inputs, _, _ = self.open(
            torch.compiler.is_compiling(),
            None,
            kwargs,
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
        )
        outputs, stream = self.model(**inputs, return_dict=True), inputs["stream"]
        logits = self.classify(outputs.last_hidden_state)
        logits = stream.pad(logits, torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            starts = token_loss(start_logits, answers_inside(start_positions, start_logits), None)
            ends = token_loss(end_logits, answers_inside(end_positions, end_logits), None)
            loss = (starts + ends) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            **pad_details(outputs, stream),
        )


ChineseModernBertModel.register_for_auto_class("AutoModel")
ChineseModernBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ChineseModernBertForSequenceClassification.register_for_auto_class(
    "AutoModelForSequenceClassification"
)
ChineseModernBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ChineseModernBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ChineseModernBertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
