"""The static form of the forward: padded rows, and no shape that depends on the data.

`torch.export`, `torch.onnx.export` and `torch.jit.trace` make one graph for all batches, so they
cannot take padding out. There the same layers work on every place of the batch, end to end, and
masks keep padding and other documents apart. At real tokens the results are those of the stream.

Padding may be on either side of a row, but not between its tokens. Local layers attend in blocks
of the window's size, so their cost is linear in the length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

try:
    from .stream_chinese_modernbert import rotary_angles
except ImportError:  # imported from a checkout, where the files are not a package
    from stream_chinese_modernbert import rotary_angles

# Added to the scores of keys that a query may not see. Not -inf: a query at padding may see no key
# at all, and would become NaN.
HIDDEN = -1e9

# Queries of one block of local attention.
QUERIES = 32


@dataclass(frozen=True, eq=False)
class PaddedStream:
    """All places of a batch, end to end: what a `TokenStream` is, with padding left in.

    Attributes:
        batch_shape: (batch, sequence) of the input.
        real: (batch, sequence), True at tokens.
        document: (batch * sequence,) number of the document that each place belongs to.
        positions: (batch * sequence,) position of each token for RoPE.
        packed: whether rows may hold several documents.
    """

    batch_shape: tuple[int, int]
    real: Tensor
    document: Tensor
    positions: Tensor
    packed: bool

    @property
    def lengths(self) -> Tensor:
        """(batch * sequence,) tokens of each document, zeros behind the last document."""
        real = self.real.flatten().long()
        return torch.zeros_like(real).scatter_add(0, self.document, real)

    @property
    def has_empty_documents(self) -> bool:
        """Rows without a real token give numbers without a meaning: a graph cannot refuse them."""
        return False

    @property
    def documents(self) -> int:
        """Documents that heads classify: the rows.

        Raises:
            ValueError: if there may be others.
        """
        if self.packed:
            raise ValueError(
                "an exported graph classifies rows, not the documents in them: leave position_ids "
                "out, and give a row for each document."
            )
        return self.batch_shape[0]

    def unpad(self, x: Tensor) -> Tensor:
        """(batch, sequence, ...) -> (batch * sequence, ...)."""
        return x.flatten(0, 1)

    def pad(self, x: Tensor, value: float | None = None) -> Tensor:
        """(batch * sequence, ...) -> (batch, sequence, ...), `value` at padding.

        Left out, padding keeps whatever was computed there: nobody reads it, and to overwrite
        logits over a vocabulary would take a fifth of an int8 model's time.
        """
        x = x.view(*self.batch_shape, *x.shape[1:])
        if value is None:
            return x
        return x.masked_fill(~self.real.view(*self.batch_shape, *[1] * (x.dim() - 2)), value)

    def pool(self, x: Tensor, pooling: str) -> Tensor:
        """(batch * sequence, size) -> (batch, size): each row's mean, or with "cls" first token."""
        # A sum over a long text would overflow fp16, and its count is not exact in bf16.
        states, real = (
            x.view(*self.batch_shape, x.shape[-1]).float(),
            self.real.unsqueeze(-1).float(),
        )
        if pooling == "cls":
            # The first token has one real token up to itself, itself.
            real = real * (real.cumsum(1) == 1)
        return ((states * real).sum(1) / real.sum(1)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows cut into blocks of queries; the keys of a block are it and a window to each side.

    Tokens are taken by their places: other ways to cut and join would tie the graph to lengths
    that are, or are not, whole blocks.

    Attributes:
        query: (blocks, queries) place in the row of each query, of which the last lie behind it.
        key: (blocks, keys) place of each key, of which some lie outside the row.
        sequence: length of the row.
    """

    query: Tensor
    key: Tensor
    sequence: int

    def queries(self, x: Tensor) -> Tensor:
        """(batch, sequence, ...) -> (batch, blocks, queries, ...), anything outside the row."""
        return self._take(x, self.query)

    def keys(self, x: Tensor) -> Tensor:
        """(batch, sequence, ...) -> (batch, blocks, keys, ...), anything outside the row."""
        return self._take(x, self.key)

    def join(self, x: Tensor) -> Tensor:
        """(batch, blocks * queries, ...) -> (batch, sequence, ...)."""
        return x.index_select(1, torch.arange(self.sequence, device=x.device))

    def _take(self, x: Tensor, place: Tensor) -> Tensor:
        taken = x.index_select(1, place.clamp(0, self.sequence - 1).flatten())
        return taken.view(x.shape[0], *place.shape, *x.shape[2:])


def make_blocks(sequence: int, window: int, device: torch.device) -> Blocks:
    """The blocks of rows of this length, which may be a symbol."""
    number = (sequence + QUERIES - 1) // QUERIES
    if not torch.jit.is_tracing():  # a graph that is exported for one block would take no more
        number = torch.sym_max(number, 2)
    first = QUERIES * torch.arange(number, device=device)[:, None]
    return Blocks(
        query=first + torch.arange(QUERIES, device=device),
        key=first + torch.arange(-window, QUERIES + window, device=device),
        sequence=sequence,
    )


@dataclass(frozen=True, eq=False)
class StaticPlan:
    """What the layers of a static forward share; the interface of an `AttentionPlan`.

    Attributes:
        stream: the places of the batch.
        angles: cos and sin of RoPE by layer type, from `rotary_angles`.
        global_mask: additive, (batch, 1, 1 or sequence, sequence).
        local_mask: additive, (batch * blocks, 1, queries, keys) of a block.
        blocks: of local attention.
    """

    stream: PaddedStream
    angles: Mapping[str, tuple[Tensor, Tensor]]
    global_mask: Tensor
    local_mask: Tensor
    blocks: Blocks
    chunk: ClassVar[None] = None
    compiled: ClassVar[bool] = False
    output_attentions: ClassVar[bool] = False


def static_inputs(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    output_hidden_states: bool | None = None,
    **others,
) -> dict:
    """What `ChineseModernBertModel.unpad_inputs` returns, in static form.

    Args:
        config: the model's.
        dtype: of queries and keys.
        input_ids, ...: as in `ChineseModernBertModel.forward`.
        others: its other arguments, which have to be None.

    Raises:
        ValueError: on arguments that an exported graph does not take.
    """
    if refused := sorted(
        name for name, value in others.items() if value is not None and value is not False
    ):
        raise ValueError(f"an exported graph does not take {', '.join(refused)}: leave it out.")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    stream = make_padded_stream(tokens, attention_mask, position_ids)
    window = config.local_attention // 2
    blocks = make_blocks(stream.batch_shape[1], window, tokens.device)
    plan = StaticPlan(
        stream=stream,
        angles={kind: rotary_angles(config, kind, stream) for kind in config.rope_parameters},
        global_mask=make_global_mask(stream, dtype),
        local_mask=make_local_mask(stream, blocks, window, dtype),
        blocks=blocks,
    )
    tokens = stream.unpad(tokens)
    return {
        "input_ids": tokens if inputs_embeds is None else None,
        "inputs_embeds": None if inputs_embeds is None else tokens,
        "plan": plan,
        "output_hidden_states": output_hidden_states,
    }


def make_padded_stream(
    tokens: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> PaddedStream:
    """The places of a batch, of ids or embeddings (batch, sequence, ...)."""
    batch, sequence = tokens.shape[:2]
    if attention_mask is None:
        attention_mask = torch.ones((batch, sequence), dtype=torch.long, device=tokens.device)
    real = attention_mask != 0
    rank = real.long().cumsum(1)
    begins = rank == 1
    if position_ids is None:
        positions = (rank - 1).clamp(min=0)
    else:
        positions = position_ids.expand(batch, sequence)
        begins = begins | (positions == 0)
    begins = begins & real
    # Padding on the left of the first row precedes all documents, and is counted to the first.
    document = (begins.flatten().long().cumsum(0) - 1).clamp(min=0)
    return PaddedStream(
        (batch, sequence), real, document, positions.flatten(), position_ids is not None
    )


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, a large negative number elsewhere."""
    hidden = max(HIDDEN, torch.finfo(dtype).min / 2)
    return (~allowed).to(dtype) * hidden


def make_global_mask(stream: PaddedStream, dtype: torch.dtype) -> Tensor:
    """(batch, 1, 1, sequence), or (batch, 1, sequence, sequence) where rows may be packed."""
    allowed = stream.real[:, None]
    if stream.packed:
        document = stream.document.view(stream.batch_shape)
        allowed = allowed & (document[:, :, None] == document[:, None, :])
    return additive(allowed[:, None], dtype)


def make_local_mask(
    stream: PaddedStream, blocks: Blocks, window: int, dtype: torch.dtype
) -> Tensor:
    """(batch * blocks, 1, queries, keys) of a block, for the tokens of `blocks`."""
    near = (blocks.query[:, :, None] - blocks.key[:, None, :]).abs() <= window
    inside = (blocks.key >= 0) & (blocks.key < stream.batch_shape[1])
    allowed = (blocks.keys(stream.real) & inside)[:, :, None] & near
    if stream.packed:
        document = stream.document.view(stream.batch_shape)
        same = blocks.queries(document)[:, :, :, None] == blocks.keys(document)[:, :, None]
        allowed = allowed & same
    return additive(allowed.flatten(0, 1).unsqueeze(1), dtype)


def static_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: StaticPlan, window: int | None
) -> Tensor:
    """(batch * sequence, heads, head size) three times -> the same, attended within documents."""
    batch, sequence = plan.stream.batch_shape
    q, k, v = (x.to(q.dtype).view(batch, sequence, *x.shape[1:]) for x in (q, k, v))
    if window is None:
        return _attention(q, k, v, plan.global_mask).flatten(0, 1)
    blocks = plan.blocks
    q, k, v = (x.flatten(0, 1) for x in (blocks.queries(q), blocks.keys(k), blocks.keys(v)))
    out = _attention(q, k, v, plan.local_mask)
    return blocks.join(out.view(batch, -1, *out.shape[2:])).flatten(0, 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """(rows, places, heads, head size) three times -> (rows, queries, heads, head size)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
