"""Chinese ModernBERT: an encoder that works on a stream of real tokens.

What is notable about it:
- inputs are unpadded once on entry and outputs re-padded once; in between, hidden states are
  (total_tokens, hidden_size) and no layer knows about rows or padding;
- documents in the stream never see each other, in any backend, forward or backward;
- every third layer attends globally within its document, the others within a 128-token window;
- RMSNorm before each block, GeGLU feed-forward, RoPE with one base per layer type, no biases in
  the blocks, tied embeddings; LayerNorm and biases for checkpoints of transformers' ModernBERT;
- in training, the MLM head runs on masked tokens only.

After *Chinese ModernBERT with Whole-Word Masking*, arXiv 2510.12285. Attention itself is in
`attention_chinese_modernbert.py`, the stream in `stream_chinese_modernbert.py`.
"""

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

try:
    from .attention_chinese_modernbert import (
        ATTENTION_BACKENDS,
        AttentionPlan,
        attend,
        in_chunks,
        is_built_in,
        make_plan,
        runs_eagerly_without_gradients,
    )
    from .backends_chinese_modernbert import AUTOMATIC, choose_attention
    from .configuration_chinese_modernbert import ChineseModernBertConfig
    from .losses_chinese_modernbert import (
        answers_inside,
        document_loss,
        infer_problem_type,
        masked_loss,
        token_loss,
    )
    from .products_chinese_modernbert import is_hooked, is_plain_linear
    from .static_chinese_modernbert import static_inputs
    from .stream_chinese_modernbert import (
        check_inputs,
        is_exporting,
        keep_state,
        make_stream,
        rotary_angles,
        rotate,
        stream_labels,
    )
except ImportError:  # imported from a checkout, where the files are not a package
    from attention_chinese_modernbert import (
        ATTENTION_BACKENDS,
        AttentionPlan,
        attend,
        in_chunks,
        is_built_in,
        make_plan,
        runs_eagerly_without_gradients,
    )
    from backends_chinese_modernbert import AUTOMATIC, choose_attention
    from configuration_chinese_modernbert import ChineseModernBertConfig
    from losses_chinese_modernbert import (
        answers_inside,
        document_loss,
        infer_problem_type,
        masked_loss,
        token_loss,
    )
    from products_chinese_modernbert import is_hooked, is_plain_linear
    from static_chinese_modernbert import static_inputs
    from stream_chinese_modernbert import (
        check_inputs,
        is_exporting,
        keep_state,
        make_stream,
        rotary_angles,
        rotate,
        stream_labels,
    )

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
# Blocks
# ---------------------------------------------------------------------------------------------


def _linear(in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Linear:
    """A Linear that carries the standard deviation of its own initialization.

    transformers skips the initialization hook of containers in custom code, so the hook has to
    find everything on the leaf.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.init_std = std
    return layer


def _between_widths(
    config: ChineseModernBertConfig, in_features: int, out_features: int
) -> nn.Module:
    """To or from the width of factorized embeddings, keeping the scale; nothing for others."""
    if config.embedding_size is None:
        return nn.Identity()
    return _linear(in_features, out_features, in_features**-0.5)


def _output_std(config: ChineseModernBertConfig) -> float:
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


class ChineseModernBertRMSNorm(nn.RMSNorm):
    """torch's RMSNorm, which has no fused kernel on a CPU and makes several fp32 copies there."""

    def forward(self, x: Tensor) -> Tensor:
        exact = x.dtype == torch.float64
        # A trace is the same with and without gradients, so that torch can check it.
        written_out = runs_eagerly_without_gradients() or torch.jit.is_tracing()
        if x.device.type != "cpu" or exact or not written_out:
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(length.square() / x.shape[-1] + self.eps)
        return (x * scale).mul_(self.weight).to(x.dtype)


def _norm(config: ChineseModernBertConfig) -> nn.Module:
    if config.norm_type == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    return ChineseModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)


class ChineseModernBertEmbeddings(nn.Module):
    """Token embeddings, projected to `hidden_size` if they are factorized, and normalized."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        width = config.embedding_width
        self.tok_embeddings = nn.Embedding(config.vocab_size, width)
        self.projection = _between_widths(config, width, config.hidden_size)
        self.norm = _norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids, or (..., embedding_width) embeddings -> (..., hidden_size)."""
        dtype = self.norm.weight.dtype
        given = tokens.is_floating_point()
        embedded = tokens.to(dtype) if given else self.tok_embeddings(tokens)
        # As in the prediction head, the norm wants one type, which autocast's projection has not.
        return self.drop(self.norm(self.projection(embedded).to(dtype)))


class ChineseModernBertAttention(nn.Module):
    """Multi-head self-attention over a token stream, global or local."""

    def __init__(self, config: ChineseModernBertConfig, layer_type: str):
        super().__init__()
        self.config = config
        self.window = config.local_attention // 2 if layer_type == "sliding_attention" else None
        width, bias = config.hidden_size, config.attention_bias
        self.Wqkv = _linear(width, 3 * width, config.initializer_range, bias)
        self.Wo = _linear(width, width, _output_std(config), bias)
        self.drop = nn.Dropout(config.attention_dropout)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, hidden_size) -> q and k with RoPE, and v, each (tokens, heads, head_size)."""
        qkv = self.Wqkv(x).view(-1, 3, self.config.num_attention_heads, self.config.head_size)
        q, k = rotate(qkv[:, :2], cos[:, None], sin[:, None]).unbind(dim=1)
        return q, k, qkv[:, 2]

    def output(self, attended: Tensor) -> Tensor:
        """(tokens, hidden_size) -> the same."""
        return self.drop(self.Wo(attended))


class ChineseModernBertMLP(nn.Module):
    """GeGLU: a gated feed-forward block."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.Wi = _linear(width, 2 * inner, config.initializer_range, bias)
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = _linear(inner, width, _output_std(config), bias)

    def forward(self, x: Tensor) -> Tensor:
        plain = is_plain_linear(self.Wi) and not is_exporting()
        if x.device.type == "cpu" and not torch.is_grad_enabled() and plain:
            # Two narrow products take less time there than one wide product.
            biases = (None, None) if self.Wi.bias is None else self.Wi.bias.chunk(2)
            hidden, gate = map(F.linear, (x, x), self.Wi.weight.chunk(2), biases)
        else:
            hidden, gate = self.Wi(x).chunk(2, dim=-1)
        active = self.act(hidden)
        # Without a backward pass the product may overwrite its factor, which saves memory.
        free = active is not hidden and not is_hooked(self.act)
        in_place = runs_eagerly_without_gradients() and free
        gated = active.mul_(gate) if in_place else active * gate
        return self.Wo(self.drop(gated))


class ChineseModernBertLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each with a residual connection.

    A hook on a layer sees (total_tokens, hidden_size), the real tokens of all rows end to end.
    CPU inference calls the modules inside a layer with a chunk of the tokens at a time, and `attn`
    itself is never called as a module, so hooks on it do not run.
    """

    def __init__(self, config: ChineseModernBertConfig, layer_idx: int):
        super().__init__()
        self.layer_type = config.layer_types[layer_idx]
        # The first layer reads embeddings, which are normalized already.
        self.attn_norm = nn.Identity() if layer_idx == 0 else _norm(config)
        self.attn = ChineseModernBertAttention(config, self.layer_type)
        self.mlp_norm = _norm(config)
        self.mlp = ChineseModernBertMLP(config)

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        places: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(total_tokens, hidden_size) -> the same, with the attention weights if asked for.

        With `places` (n,) only the states of those tokens come out, (n, hidden_size).
        """
        q, k, v = in_chunks(self.before_attention, plan.chunk, x, *plan.angles[self.layer_type])
        attended, weights = attend(q, k, v, plan, self.attn.window, self.attn)
        attended = attended.flatten(1).contiguous()  # else a compiled piece is made for each layout
        if places is not None:
            x, attended = x[places], attended[places]
        x = in_chunks(self.after_attention, plan.chunk, x, attended)
        return (x, weights) if plan.output_attentions else x

    def __getstate__(self) -> dict:
        """Leaves out what `compile` put in place of methods: a copy would use these weights."""
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
        super().__init__(config.without_pipelines())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its own dispatch in the source; ours is `attend`.
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

    def attention_backend(self, device: torch.device | None = None) -> tuple[str, str]:
        """The attention backend that a forward uses here and now, and why it is this one.

        It depends on the device, on the weights' type and on autocast.

        Args:
            device: of the tokens; None for the weights' own, or where accelerate brings them to.

        Raises:
            ValueError: if the requested backend cannot work there; the message says how to fix it.
        """
        if device is None:
            part = self._some_part()
            device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            device = part.weight.device if device is None else torch.device(device)
            if device.type == "meta":
                raise ValueError("the weights are on meta: give the device that the model is for.")
        dtype = self.attention_dtype(device)
        return choose_attention(self.config._attn_implementation, device, dtype)

    def attention_dtype(self, device: torch.device) -> torch.dtype:
        """The type of queries and keys here and now, for tokens on a device."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self._some_part().weight.dtype

    def _some_part(self) -> nn.Module:
        """A part that nobody has replaced, and whose weight has the usual type."""
        # Not the first parameter: a replica of DataParallel has none.
        encoder = self.base_model
        parts = (encoder.final_norm, encoder.layers[0].mlp_norm, self.get_input_embeddings())
        return next(part for part in parts if hasattr(part, "weight"))

    def compile(self, *args, **kwargs) -> None:
        """Compiles the parts that treat each token by itself, and leaves attention uncompiled.

        The parts are the same in all layers, so there are only a few graphs, compiled within
        seconds whatever the depth, and valid for every batch. CPU inference still runs in chunks of
        tokens, which makes this the fastest way there. `torch.compile(model)` makes one graph of
        the whole model instead. Copies of the model are not compiled.

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
        """Truncated normal at two standard deviations, after ModernBERT; norms one, biases zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            std = getattr(module, "init_std", self.config.initializer_range)
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
        else:
            return
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)


class ChineseModernBertModel(ChineseModernBertPreTrainedModel):
    """The bare encoder."""

    # A checkpoint of a model with a head opens here without that head's weights: nothing is wrong.
    _keys_to_ignore_on_load_unexpected = [
        r"^head\.(dense|norm)\.weight$",
        r"^(projection|decoder|classifier)\.(weight|bias)$",
    ]

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        self.embeddings = ChineseModernBertEmbeddings(config)
        self.layers = nn.ModuleList(
            ChineseModernBertLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_norm = _norm(config)
        self.gradient_checkpointing = False
        # A bias that the configuration does not know of is reported.
        biases = {"dense": config.classifier_bias, "norm": config.norm_bias}
        self._keys_to_ignore_on_load_unexpected = self._keys_to_ignore_on_load_unexpected + [
            rf"^head\.{name}\.bias$" for name, present in biases.items() if present
        ]
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.tok_embeddings = value

    def enter(self, **inputs) -> dict:
        """`unpad_inputs`, or the static form of it in a graph that is exported."""
        if is_exporting():
            ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
            dtype = self.attention_dtype((ids if embeds is None else embeds).device)
            return static_inputs(self.config, dtype, **inputs)
        return self.unpad_inputs(compiled=torch.compiler.is_compiling(), **inputs)

    @torch.compiler.disable  # shapes that depend on the data; what it returns has one form for all
    def unpad_inputs(
        self,
        *,
        compiled: bool = False,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> dict:
        """Checks a batch, chooses the attention backend, and takes padding and rows away.

        Args:
            compiled: whether what follows is a compiled graph, `torch.compiler.is_compiling()`.
            input_ids, ...: as in `forward`.

        Returns:
            Keyword arguments for `forward`: `plan`, the tokens as `input_ids` (total_tokens,) or
            `inputs_embeds` (total_tokens, embedding_width), and `output_hidden_states`.

        Raises:
            ValueError: on contradictory input; the message says what fits.
        """
        tokens = check_inputs(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            head_mask=head_mask,
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
        )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        backend = self._backend_for(output_attentions, tokens.device)
        stream = make_stream(
            batch_shape=tokens.shape[:2],
            device=tokens.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cu_seqlens=cu_seq_lens_q,
        )
        plan = make_plan(
            stream,
            angles={
                kind: rotary_angles(self.config, kind, stream)
                for kind in self.config.rope_parameters
            },
            backend=backend,
            windows={layer.attn.window for layer in self.layers},
            dtype=self.attention_dtype(tokens.device),
            output_attentions=output_attentions,
            # Attention weights have the batch's shape: such graphs are made for one batch alone.
            compiled=compiled and not output_attentions,
        )
        tokens = stream.unpad(tokens)
        if plan.compiled:
            torch._dynamo.maybe_mark_dynamic(tokens, 0)
        return {
            "input_ids": tokens if inputs_embeds is None else None,
            "inputs_embeds": None if inputs_embeds is None else tokens,
            "plan": plan,
            "output_hidden_states": output_hidden_states,
        }

    def _backend_for(self, output_attentions: bool, device: torch.device) -> str:
        """The name of the attention backend; logs why it is this one."""
        backend, reason = self.attention_backend(device)
        if output_attentions and is_built_in(backend) and backend != "eager":
            logger.warning_once(
                f"Attention is eager for calls with output_attentions, because {backend!r} does "
                "not form attention weights. model.set_attn_implementation('eager') makes it so "
                "for all calls."
            )
            return "eager"
        if backend == "sdpa" and device.type == "cuda" and reason != "as asked for":
            logger.warning_once(f"Attention is {backend}: {reason}.")
        else:
            logger.info_once(f"Attention is {backend}: {reason}.")
        return backend

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
        token_type_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        plan: AttentionPlan | None = None,
        places: Tensor | None = None,
    ) -> BaseModelOutput:
        """Encodes a batch.

        Args:
            input_ids: (batch, sequence) token ids; or give `inputs_embeds`.
            attention_mask: (batch, sequence), 0 at padding, on either side.
            position_ids: (batch, sequence) or (1, sequence). A document begins wherever they are
                0, so packed rows are given by positions that restart.
            inputs_embeds: (batch, sequence, embedding_width) instead of `input_ids`.
            cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) cumulative lengths of a flattened batch
                of one row; an encoder needs both to be the same.
            max_length_q, max_length_k, seq_idx: longest document and document of each token, given
                beside the lengths by some collators; they follow from the lengths and are not read.
            output_attentions: also return the weights, (batch, heads, sequence, sequence) for each
                layer. Backends that do not form them leave the call to `eager`.
            output_hidden_states: also return the states (batch, sequence, hidden_size) after the
                embeddings and after each layer; the last one is `last_hidden_state`.
            token_type_ids, head_mask: zeros or None, and None, as callers of BERT give them.
            plan: from `unpad_inputs`, for callers that work on the stream: then input_ids are
                (total_tokens,) or inputs_embeds (total_tokens, embedding_width),
                `last_hidden_state` is (total_tokens, hidden_size), and mask, positions and lengths
                are not read.
            places: with `plan`, (n,) numbers of the tokens whose states are wanted;
                `last_hidden_state` is (n, hidden_size), and the last layer does no more.

        Returns:
            `last_hidden_state` (batch, sequence, hidden_size), zeros at padding. It is computed
            from the hidden states and attention weights that are returned, so `retain_grad` on
            them gives gradients (not under `torch.compile`).

        Raises:
            ValueError: on contradictory input; the message says what fits.

        Hooks on the embeddings (NEFTune's noise, attribution) see (batch, sequence, width); hooks
        on layers and on the final norm see the stream, (total_tokens, hidden_size).
        """
        if plan is None:
            inputs = self.enter(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                cu_seq_lens_q=cu_seq_lens_q,
                cu_seq_lens_k=cu_seq_lens_k,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                token_type_ids=token_type_ids,
                head_mask=head_mask,
            )
            # Not self.forward: what accelerate has put in its place is for the first call.
            outputs = ChineseModernBertModel.forward(self, **inputs, return_dict=True)
            if outputs.hidden_states is None:
                outputs.last_hidden_state = inputs["plan"].stream.pad(outputs.last_hidden_state)
            else:
                outputs.last_hidden_state = outputs.hidden_states[-1]
            return outputs

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x = self.embed(input_ids if inputs_embeds is None else inputs_embeds, plan)
        hidden_states, attentions = [], []
        # What is returned, or seen by a hook, has to be whole.
        seen = output_hidden_states or is_hooked(self.layers[-1]) or is_hooked(self.final_norm)
        early = None if seen else places
        for number, layer in enumerate(self.layers, 1):
            if output_hidden_states:
                x = keep_state(x, hidden_states, plan.stream)
            x = layer(x, plan, early if number == len(self.layers) else None)
            if plan.output_attentions:
                x, weights = x
                attentions.append(weights)
        x = in_chunks(self.final_norm, None if is_hooked(self.final_norm) else plan.chunk, x)
        if output_hidden_states:
            x = keep_state(x, hidden_states, plan.stream)
            if torch.compiler.is_compiling():
                hidden_states = [plan.stream.pad(state) for state in hidden_states]
        if places is not None and early is None:
            x = x[places.to(x.device)]
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if plan.output_attentions else None,
        )

    def embed(self, tokens: Tensor, plan: AttentionPlan) -> Tensor:
        """(total_tokens,) ids or (total_tokens, embedding_width) -> (total_tokens, hidden_size)."""
        given = self.embeddings.tok_embeddings
        hooked = is_hooked(given) or is_hooked(self.embeddings)
        if type(given) is not nn.Embedding or hooked:  # they may count on padded inputs
            padded = plan.stream.pad(tokens, self.config.pad_token_id or 0)
            return plan.stream.unpad(self.embeddings(padded))
        return in_chunks(self.embeddings, plan.chunk, tokens)


# ---------------------------------------------------------------------------------------------
# Heads
# ---------------------------------------------------------------------------------------------


def asked_for(outputs: BaseModelOutput) -> dict[str, tuple[Tensor, ...] | None]:
    """The encoder's hidden states and attentions, which every head returns beside its logits."""
    return {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}


class ChineseModernBertPredictionHead(nn.Module):
    """Dense, activation and norm before the last projection of every head."""

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__()
        width, bias = config.hidden_size, config.classifier_bias
        self.dense = _linear(width, width, config.initializer_range, bias)
        self.act = ACT2FN[config.classifier_activation or config.hidden_activation]
        self.norm = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the projection is bf16 and the norm's weight fp32; the norm wants one type.
        return self.norm(self.act(self.dense(x)).to(self.norm.weight.dtype))


class ChineseModernBertWithHead(ChineseModernBertPreTrainedModel):
    """The encoder as `model`, and the projection of pretraining as `head`: what all heads share.

    Each forward unpads its inputs once by the encoder's `unpad_inputs`, works on the stream, where
    padding costs nothing, and re-pads its logits by `TokenStream.pad`.
    """

    # Losses are normalized by num_items_in_batch: Trainer must not divide them again.
    accepts_loss_kwargs = True

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        self.model = ChineseModernBertModel(self.config)
        self.head = ChineseModernBertPredictionHead(config)

    def unpad_inputs(self, **inputs) -> dict:
        """Unpads inputs as the encoder does."""
        return self.model.enter(**inputs)


class ChineseModernBertForMaskedLM(ChineseModernBertWithHead):
    """The encoder with the masked-language-modeling head it is pretrained with."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        width = config.embedding_width
        self.projection = _between_widths(config, config.hidden_size, width)
        self.decoder = nn.Linear(width, config.vocab_size, bias=config.decoder_bias)
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
            computing them for the other 70 to 85 % of tokens would be most of the cost of a small
            model.

        Raises:
            ValueError: on contradictory input.
        """
        inputs = self.unpad_inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        stream, compiled = inputs["plan"].stream, inputs["plan"].compiled
        labels, labeled = stream_labels(labels, stream, compiled)
        whole = labels is None or not self.training
        outputs = self.model(**inputs, places=None if whole else labeled, return_dict=True)
        x = self.projection(self.head(outputs.last_hidden_state))
        loss = logits = None
        if whole:
            logits = self.decoder(x)
            if labels is not None:
                loss = token_loss(logits, labels, num_items_in_batch)
            logits = stream.pad(logits)
        else:
            loss = masked_loss(self.decoder, x, labels[labeled], num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, **asked_for(outputs))


class ChineseModernBertForFineTuning(ChineseModernBertWithHead):
    """The encoder, its head, and a new classifier: what the fine-tuning models share."""

    def __init__(self, config: ChineseModernBertConfig, num_labels: int):
        super().__init__(config)
        self.num_labels = num_labels
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., labels)."""
        return self.classifier(self.drop(self.head(x)))

    def classify_documents(self, **inputs) -> tuple[Tensor, BaseModelOutput]:
        """Logits (documents, labels) of pooled documents, and the encoder's outputs.

        Args:
            inputs: arguments of `ChineseModernBertModel.forward`.

        Raises:
            ValueError: on a row or a document without a real token.
        """
        inputs = self.unpad_inputs(**inputs)
        stream = inputs["plan"].stream
        batch, documents = stream.batch_shape[0], stream.documents
        if documents < batch:
            raise ValueError(
                f"only {documents} of the {batch} rows hold a real token: attention_mask is all "
                "zero in the others, so there is nothing to classify in them. Leave them out."
            )
        if stream.has_empty_documents:
            raise ValueError(
                "two numbers of cu_seq_lens_q are equal: the document between them holds no token, "
                "so there is nothing to classify in it. Leave it out."
            )
        outputs = self.model(**inputs, return_dict=True)
        pooled = stream.pool(outputs.last_hidden_state, self.config.classifier_pooling)
        return self.classify(pooled), outputs


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
        """Classifies documents. Takes what `ChineseModernBertModel.forward` takes, and:

        Args:
            labels: (documents,) classes, as integers; (documents, num_labels) zeros and ones for
                `multi_label_classification`; (documents,) or (documents, num_labels) numbers for
                `regression`. Each row is a document, or in packed and flattened input each of its
                documents.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (documents, num_labels).

        `config.problem_type` decides the loss. Left out, it is inferred as in transformers and
        stored in the configuration: regression for one label, one class of several for integer
        labels, several labels for floating-point ones.

        Raises:
            ValueError: on contradictory input, a row without tokens, or labels that do not fit.
        """
        logits, outputs = self.classify_documents(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        loss = None
        if labels is not None:
            problem = self.config.problem_type
            kind = problem or infer_problem_type(self.config.num_labels, labels)
            loss = document_loss(logits, labels, kind, num_items_in_batch)
            if problem is None:
                self.config.problem_type = kind
        return SequenceClassifierOutput(loss=loss, logits=logits, **asked_for(outputs))


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
        """Picks a choice. Inputs as for `ChineseModernBertModel.forward`, with one more dimension:

        Args:
            input_ids, attention_mask, position_ids: (batch, choices, sequence).
            inputs_embeds: (batch, choices, sequence, embedding_width).
            labels: (batch,) index of the right choice.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (batch, choices). Hidden states and attentions have one row a choice,
            (batch * choices, ...).

        Raises:
            ValueError: on input of another shape, or a choice without tokens.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.dim() != (3 if inputs_embeds is None else 4):
            raise ValueError(
                "multiple choice takes input_ids (batch, choices, sequence) or inputs_embeds "
                "(batch, choices, sequence, embedding_width), got "
                f"{'nothing' if given is None else tuple(given.shape)}."
            )
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        rows = {name: x.flatten(0, 1) for name, x in inputs.items() if x is not None}
        logits, outputs = self.classify_documents(**rows, **kwargs)
        if logits.shape[0] != given.shape[0] * given.shape[1]:
            raise ValueError("multiple choice takes padded rows in which a choice is a document.")
        logits = logits.view(given.shape[:2])
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **asked_for(outputs))


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
            labels: (batch, sequence) classes, -100 at tokens that do not count.
            num_items_in_batch: labels of the whole optimizer step, as Trainer counts them.

        Returns:
            `loss`; `logits` (batch, sequence, num_labels), zeros at padding.

        Raises:
            ValueError: on contradictory input.
        """
        inputs = self.unpad_inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        stream, compiled = inputs["plan"].stream, inputs["plan"].compiled
        labels, _ = stream_labels(labels, stream, compiled)
        outputs = self.model(**inputs, return_dict=True)
        logits = self.classify(outputs.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        logits = stream.pad(logits)
        return TokenClassifierOutput(loss=loss, logits=logits, **asked_for(outputs))


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
            sequence), at padding the lowest number of their type, so that the amount of padding
            changes no probability.

        Trainer counts only items named `labels`, so accumulated batches weigh the same whatever
        their size, as with every question-answering model of transformers.

        Raises:
            ValueError: on contradictory input.
        """
        inputs = self.unpad_inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        outputs = self.model(**inputs, return_dict=True)
        logits = self.classify(outputs.last_hidden_state)
        logits = inputs["plan"].stream.pad(logits, torch.finfo(logits.dtype).min)
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
            **asked_for(outputs),
        )


ChineseModernBertModel.register_for_auto_class("AutoModel")
ChineseModernBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ChineseModernBertForSequenceClassification.register_for_auto_class(
    "AutoModelForSequenceClassification"
)
ChineseModernBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ChineseModernBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ChineseModernBertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
