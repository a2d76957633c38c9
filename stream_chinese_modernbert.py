"""The stream: the real tokens of a batch, end to end, their documents and their positions.

Inputs are unpadded once on entry and outputs re-padded once; in between, the model works on
(total_tokens, hidden_size) and knows neither rows nor padding.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Labels that do not count in a loss.
IGNORED = -100


# Not frozen, as are the plan and the grid of attention: of frozen ones torch 2.11 reads every field
# while it compiles, and makes another graph for each number of documents.
@dataclass(eq=False)
class TokenStream:
    """The real tokens of a batch, end to end, and the documents that they form.

    Attributes:
        batch_shape: (batch, sequence) of the input.
        indices: (total_tokens,) positions of the real tokens in the flattened input, or None
            where every token is real.
        cu_seqlens: (documents + 1,) int32, cumulative lengths: document d is the slice
            `cu_seqlens[d]:cu_seqlens[d + 1]` of the stream.
        bounds: the same numbers as Python integers, read from the device once a forward.
        document: (total_tokens,) number of the document that each token belongs to.
        positions: (total_tokens,) position of each token for RoPE.
        has_empty_documents: whether one of the documents holds no token.
    """

    batch_shape: tuple[int, int]
    indices: Tensor | None
    cu_seqlens: Tensor
    bounds: tuple[int, ...]
    document: Tensor
    positions: Tensor
    has_empty_documents: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(end - start for start, end in itertools.pairwise(self.bounds))

    @property
    def lengths(self) -> Tensor:
        """(documents,) int64, tokens of each document."""
        return self.cu_seqlens.diff().long()

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return self.cu_seqlens.shape[0] - 1

    def unpad(self, x: Tensor) -> Tensor:
        """(batch, sequence, ...) -> (total_tokens, ...)."""
        x = x.reshape(-1, *x.shape[2:])
        return x if self.indices is None else x[self.indices.to(x.device)]

    @torch.compiler.disable  # its shapes follow the padding, not the tokens
    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(total_tokens, ...) -> (batch, sequence, ...), `value` at padding."""
        batch, sequence = self.batch_shape
        if self.indices is not None:
            padded = x.new_full((batch * sequence, *x.shape[1:]), value)
            x = padded.index_copy(0, self.indices.to(x.device), x)
        return x.view(batch, sequence, *x.shape[1:])

    def pool(self, x: Tensor, pooling: str) -> Tensor:
        """(total_tokens, size) -> (documents, size): each one's mean, or with "cls" first token.

        Padding on either side and packing make no difference.
        """
        if pooling == "cls":
            return x[self.cu_seqlens[:-1].long().to(x.device)]
        if x.device.type == "mps":  # which has no segment_reduce, as of torch 2.13
            return self.means_by_index(x.float()).to(x.dtype)
        lengths = self.lengths.to(x.device)
        return torch.segment_reduce(x.float(), "mean", lengths=lengths, axis=0).to(x.dtype)

    def means_by_index(self, x: Tensor) -> Tensor:
        """(total_tokens, size) -> (documents, size), in an order of summation that may vary."""
        sums = x.new_zeros(self.documents, x.shape[1])
        sums = sums.index_add(0, self.document.to(x.device), x)
        return sums / self.lengths.to(x.device)[:, None]


def keep_state(x: Tensor, kept: list[Tensor], stream: TokenStream) -> Tensor:
    """Appends x in padded form, and returns what the model continues with.

    That is computed from the padded copy, so that gradients reach what is returned. A compiled
    graph keeps x itself: its padded form depends on the batch's shape.
    """
    if torch.compiler.is_compiling():
        kept.append(x)
        return x
    kept.append(stream.pad(x))
    return stream.unpad(kept[-1])


def moved(parts: Any, device: torch.device | str | int) -> Any:
    """A data class with all tensors in it on another device."""

    def on_device(value):
        if dataclasses.is_dataclass(value):
            return moved(value, device)
        if isinstance(value, Mapping):
            return {key: on_device(each) for key, each in value.items()}
        if isinstance(value, tuple):
            return tuple(map(on_device, value))
        return value.to(device) if hasattr(value, "to") else value

    return dataclasses.replace(
        parts, **{name: on_device(value) for name, value in vars(parts).items()}
    )


def check_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    token_type_ids: Tensor | None,
    head_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
) -> Tensor:
    """Checks a model's arguments; returns the ids or the embeddings, whichever were given.

    Raises:
        ValueError: on arguments that contradict each other, or that the model cannot honor.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(
            f"input_ids must be (batch, sequence), got shape {tuple(input_ids.shape)}."
        )
    if inputs_embeds is not None and inputs_embeds.dim() != 3:
        raise ValueError(
            "inputs_embeds must be (batch, sequence, embedding_width), got shape "
            f"{tuple(inputs_embeds.shape)}."
        )
    if (cu_seq_lens_q is None) != (cu_seq_lens_k is None) or (
        cu_seq_lens_k is not cu_seq_lens_q and not torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    ):
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together, and equal.")
    if token_type_ids is not None and token_type_ids.any():
        raise ValueError(
            "token_type_ids has nonzero entries, but this model has no segment embeddings. Leave "
            "token_type_ids out: the two texts of a pair are told apart by [SEP]."
        )
    if head_mask is not None:
        raise ValueError("head_mask is not supported: leave it out, or give None.")
    return input_ids if inputs_embeds is None else inputs_embeds


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
    Padding takes up no positions: it is as if it were not there.

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
    return TokenStream(
        (batch, sequence),
        indices,
        cu_seqlens,
        tuple(bounds),
        document,
        positions,
        has_empty_documents=len(set(bounds)) < len(bounds),
    )


def is_exporting() -> bool:
    """Whether a graph is made that has to hold for every batch without looking at its values."""
    # In torch 2.11 `torch.compiler.is_exporting()` is also True in graphs of torch.compile. The
    # flag behind it is True in an export only, and compiled code reads its value.
    exporting = getattr(torch.compiler, "_is_exporting_flag", None)
    if exporting is None:
        exporting = torch.compiler.is_exporting()
    return exporting or torch.jit.is_tracing()


def stream_labels(
    labels: Tensor | None, stream: TokenStream, compiled: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Labels (batch, sequence) -> (total_tokens,), and the (labeled,) places that are not ignored.

    Without labels, both are None. `compiled` says whether what follows is a compiled graph.

    Raises:
        ValueError: on labels of another shape, or in an exported graph.
    """
    if labels is None:
        return None, None
    if is_exporting():
        raise ValueError("an exported graph computes no loss: leave labels out.")
    return _stream_labels(labels, stream, compiled)


@torch.compiler.disable  # shapes that depend on the data
def _stream_labels(labels: Tensor, stream: TokenStream, compiled: bool) -> tuple[Tensor, Tensor]:
    if tuple(labels.shape) != tuple(stream.batch_shape):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected {tuple(stream.batch_shape)}: "
            "one entry a token, -100 where there is nothing to predict."
        )
    labels = stream.unpad(labels)
    places = (labels != IGNORED).nonzero().squeeze(1)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(labels, 0)
        torch._dynamo.maybe_mark_dynamic(places, 0)
    return labels, places


def rotary_angles(
    config: PreTrainedConfig, layer_type: str, stream: TokenStream
) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE, each (total_tokens, 1, head_size), in fp32.

    Dimension i of a head is paired with i + head_size / 2, so the two halves of the cosines are
    equal, and so are those of the sines but for their sign, which is minus in the first.

    They are computed where they are needed: `.to(bfloat16)` would cast a buffer, and a buffer that
    is not persistent comes back uninitialized from `from_pretrained`.
    """
    rope, device = config.rope_parameters[layer_type], stream.positions.device
    magnitude = 1.0
    if rope["rope_type"] == "default":
        # Rounded once, so that they are the same on every device and in every exported graph: far
        # into a long text the last bit of a frequency moves the angle by a thousandth.
        size, theta = config.head_size, rope["rope_theta"]
        powers = [theta ** (-i / size) for i in range(0, size, 2)]
        frequencies = torch.tensor(powers, device=device, dtype=torch.float32)
    else:
        # Dynamic scaling depends on each document's own length, so that none changes another.
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](
            config, device, seq_len=stream.lengths[:, None], layer_type=layer_type
        )
        if frequencies.dim() == 2:
            frequencies = frequencies[stream.document]
    angles = stream.positions.float()[:, None] * frequencies
    cos, sin = (angles.cos() * magnitude)[:, None], (angles.sin() * magnitude)[:, None]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs of (total_tokens, ..., head_size) by the angles, in fp32."""
    exact = x.float()
    if torch.compiler.is_compiling():  # a compiled roll reads its input one number at a time
        swapped = torch.cat(exact.chunk(2, dim=-1)[::-1], dim=-1)
    else:
        swapped = exact.roll(x.shape[-1] // 2, dims=-1)
    return (exact * cos).addcmul_(swapped, sin).to(x.dtype)
