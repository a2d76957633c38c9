"""The twin: transformers' BertForMaskedLM, as large as a given model of ours, made fast to train.

Its weights are BertForMaskedLM's, which opens what is saved here. Three things differ, none of them
in what is computed for a single text: documents of a packed row do not see each other, the head
sees masked tokens only, and there is no dropout (as in our model: no text is read twice).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import IGNORED
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.files import read_json

# Largest difference in size at which the two count as twins.
TOLERANCE = 0.03

# BERT's, which are learned: rows may not be longer.
POSITIONS = 512


@dataclass(frozen=True)
class Shape:
    """What of BERT's shape is free.

    Attributes:
        hidden_size, heads: those of our model.
        layers, intermediate_size: what its size leaves room for.
    """

    hidden_size: int
    heads: int
    layers: int
    intermediate_size: int

    def config(self, vocab_size: int, pad_id: int = 0) -> BertConfig:
        """The configuration of a model of this shape."""
        return BertConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_attention_heads=self.heads,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=POSITIONS,
            pad_token_id=pad_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )


def parameters(config: ChineseModernBertConfig | BertConfig) -> int:
    """The number of parameters of a masked-language model, tied weights counted once."""
    kind = BertForMaskedLM if isinstance(config, BertConfig) else ChineseModernBertForMaskedLM
    with torch.device("meta"):
        return kind(config).num_parameters()


def shape_like(config_file: Path, vocab_size: int) -> Shape:
    """The shape of a BERT with as many parameters as our model, as wide and with as many heads.

    It has the number of layers at which BERT's proportion, an intermediate size of four times the
    hidden size, comes nearest, and then as many quarters of the hidden size as come nearest.

    Args:
        config_file: configuration of our model.
        vocab_size: entries of the twin's vocabulary.

    Raises:
        OSError, ValueError: if the file cannot be used, or no such BERT comes within 3 %.
    """
    try:
        ours = ChineseModernBertConfig.from_dict(read_json(config_file))
    except TypeError as error:
        raise ValueError(f"{config_file}: {error}") from error
    hidden, heads, wanted = ours.hidden_size, ours.num_attention_heads, parameters(ours)

    def size(layers: int, intermediate: int) -> int:
        return parameters(Shape(hidden, heads, layers, intermediate).config(vocab_size))

    one = size(1, 4 * hidden)
    layer = size(2, 4 * hidden) - one
    layers = max(1, 1 + round((wanted - one) / layer))
    quarter = size(layers, 4 * hidden + hidden // 4) - size(layers, 4 * hidden)
    more = round((wanted - size(layers, 4 * hidden)) / quarter)
    intermediate = max(hidden, 4 * hidden + hidden // 4 * more)
    if abs(size(layers, intermediate) / wanted - 1) > TOLERANCE:
        raise ValueError(
            f"{config_file}: no BERT of hidden_size {hidden} and {vocab_size} entries is within "
            f"{TOLERANCE:.0%} of its {wanted:,} parameters; give a model with a larger encoder."
        )
    return Shape(hidden, heads, layers, intermediate)


class Twin(BertForMaskedLM):
    """BertForMaskedLM over packed rows, for training."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, masked: Tensor, labels: Tensor
    ) -> MaskedLMOutput:
        """The loss of a batch of packed rows.

        Args:
            input_ids: (rows, seq_len).
            position_ids: (rows, seq_len), 0 where a document begins and at padding.
            masked: (places,) indices into the flattened batch, of as many places in each batch, so
                that the model is compiled once.
            labels: (places,) original ids, -100 for places that only fill up.

        Returns:
            `loss`, the mean over the labels in nats, and the `logits` (places, vocab_size).
        """
        document = (position_ids == 0).cumsum(-1)
        together = document[:, None, :, None] == document[:, None, None, :]
        outputs = self.bert(input_ids, attention_mask=together, position_ids=position_ids)
        hidden = outputs.last_hidden_state.flatten(0, 1)[masked]
        logits = self.cls(hidden)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
        return MaskedLMOutput(loss=loss, logits=logits)
