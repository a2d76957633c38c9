"""The sides of a comparison: Chinese ModernBERT beside transformers' ModernBERT and BERT."""

from dataclasses import dataclass

import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

import common  # noqa: F401 (puts the root on sys.path)
from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM

OURS, MODERNBERT, BERT = "Chinese ModernBERT", "ModernBERT", "BERT"


@dataclass(frozen=True)
class Shape:
    """The shape that all sides share."""

    layers: int
    hidden: int = 1024
    heads: int = 16
    intermediate: int = 2624
    vocab: int = 32_000
    context: int = 32_768

    def config(self) -> ChineseModernBertConfig:
        """Our configuration of this shape."""
        return ChineseModernBertConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
        )


@dataclass(frozen=True)
class Side:
    """A model, the attention backend of ours (None: its default), and how it is compiled.

    `compiler` is a backend of `torch.compile`, or None to run eagerly.
    """

    name: str
    backend: str | None = None
    compiler: str | None = None

    def build(self, shape: Shape) -> torch.nn.Module:
        """A masked-language model with random weights, in eval mode, not yet compiled."""
        return build(self.name, shape, self.backend)

    def ready(self, model: torch.nn.Module) -> torch.nn.Module:
        """Compiles the model if this side is compiled."""
        if self.compiler is not None:
            # Ours compiles its layers one by one, the peers compile as a whole.
            model.compile(dynamic=True, backend=self.compiler)
        return model


@dataclass(frozen=True)
class Comparison:
    """The sides by their labels, and how they are measured."""

    shape: Shape
    sides: dict[str, Side]
    device: torch.device
    rounds: int

    def build(self, side: Side) -> torch.nn.Module:
        """A side's model on the device, where its weights are drawn: a CPU takes seconds for it."""
        with self.device:
            return side.build(self.shape)


def sides_of(
    backends: list[str | None], peers: bool, compiler: str | None, compiled_peer: bool = True
) -> dict[str, Side]:
    """All sides by their labels.

    Args:
        backends: attention backends of ours, one side each.
        peers: whether ModernBERT and BERT take part.
        compiler: backend of `torch.compile` for a compiled side beside each but BERT's; None: no
            compiled sides.
        compiled_peer: whether ModernBERT has a compiled side.
    """
    sides = {f"{OURS} ({backend})": Side(OURS, backend) for backend in backends}
    if peers:
        sides |= {MODERNBERT: Side(MODERNBERT), BERT: Side(BERT)}
    if compiler is not None:
        sides |= {
            label.replace(")", ", compiled)") if ")" in label else f"{label} (compiled)": Side(
                side.name, side.backend, compiler
            )
            for label, side in sides.items()
            if side.name == OURS or (side.name == MODERNBERT and compiled_peer)
        }
    return sides


def build(name: str, shape: Shape, backend: str | None) -> torch.nn.Module:
    """A masked-language model with random weights, in eval mode.

    Args:
        name: `OURS`, `MODERNBERT` or `BERT`.
        backend: attention backend of ours; the peers use `sdpa`.
    """
    shared = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if name == MODERNBERT:
        config = ModernBertConfig(
            intermediate_size=shape.intermediate,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
            **shared,
        )
        return ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    if name == BERT:
        # The others have no dropout, and on a CPU torch's fused attention takes none.
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(intermediate_size=4 * shape.hidden, **none, **shared)
        return BertForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    model = ChineseModernBertForMaskedLM._from_config(shape.config(), attn_implementation=backend)
    return model.eval()


def encoder(model: torch.nn.Module) -> torch.nn.Module:
    """The part of a masked-language model below its head."""
    return model.bert if isinstance(model, BertForMaskedLM) else model.model
