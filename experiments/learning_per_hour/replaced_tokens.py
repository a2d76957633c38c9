"""Replaced-token detection: a small generator fills the masks, the model finds what it replaced.

The detector is the model of the run with one logit for each token. The generator is as deep, a
quarter as wide, and has the detector's token embeddings. It predicts the masked tokens; a token
drawn from its predictions takes the place of each of them, and the detector says of all tokens
whether they were replaced. A token that was drawn right counts as not replaced.

Source: ELECTRA, arXiv 2003.10555, with its weight of the detector's loss.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import ModelOutput

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import DataCollatorForWholeWordMasking
from losses_chinese_modernbert import masked_loss
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForTokenClassification,
    ChineseModernBertPreTrainedModel,
)
from products_chinese_modernbert import LOGITS
from stream_chinese_modernbert import stream_labels

GENERATOR_WIDTH = 1 / 4
DETECTOR_WEIGHT = 50.0

# Sets the draws of a row apart from others that follow from its seed and position.
_DRAWS = 1


def generator_config(config: ChineseModernBertConfig) -> ChineseModernBertConfig:
    """The generator's shape beside a detector of this one.

    Raises:
        ValueError: if a quarter of the width does not divide into heads.
    """
    narrowed = {
        name: max(1, int(getattr(config, name) * GENERATOR_WIDTH))
        for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    }
    embeddings = {"embedding_size": config.embedding_width}
    return ChineseModernBertConfig.from_dict(config.to_dict() | narrowed | embeddings)


class ReplacedTokenDetection(ChineseModernBertPreTrainedModel):
    """Generator and detector, trained together."""

    _tied_weights_keys = {
        f"generator.{name}": "detector.model.embeddings.tok_embeddings.weight"
        for name in ("model.embeddings.tok_embeddings.weight", "decoder.weight")
    }
    # Otherwise Trainer would warn of missing names whenever it goes on from a checkpoint.
    _keys_to_ignore_on_save = set(_tied_weights_keys)

    # Losses are means over a batch: Trainer divides them by the number of batches of a step.
    accepts_loss_kwargs = False

    def __init__(self, config: ChineseModernBertConfig):
        super().__init__(config)
        detector = ChineseModernBertConfig.from_dict(config.to_dict() | {"num_labels": 1})
        self.detector = ChineseModernBertForTokenClassification(detector)
        self.generator = ChineseModernBertForMaskedLM(generator_config(config))
        # Since the last log: the generator's loss, the detector's, and how many they are.
        self.register_buffer("losses", torch.zeros(3), persistent=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        draws: Tensor,
    ) -> ModelOutput:
        """The loss of a batch.

        Args:
            input_ids, attention_mask, position_ids, labels: (batch, sequence) from the collator.
            draws: (batch, sequence) numbers from 0 up to 1, which decide what is drawn.

        Returns:
            `loss`, the generator's cross-entropy over the masked tokens plus 50 times the
            detector's over all tokens.
        """
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        inputs = self.generator.unpad_inputs(**batch)
        stream, compiled = inputs["plan"].stream, inputs["plan"].compiled
        labels, places = stream_labels(labels, stream, compiled)
        truth, draws = labels[places], stream.unpad(draws)[places]
        x = self.generator.model(**inputs, places=places, return_dict=True).last_hidden_state
        x = self.generator.projection(self.generator.head(x))
        generating = masked_loss(self.generator.decoder, x, truth, None)

        drawn = draw_tokens(self.generator.decoder, x, draws)
        shown = self.detector.unpad_inputs(**batch)
        shown["input_ids"] = shown["input_ids"].index_put((places,), drawn)
        states = self.detector.model(**shown, return_dict=True).last_hidden_state
        logits = self.detector.classify(states).squeeze(-1).float()
        replaced = torch.zeros_like(logits).index_put((places,), (drawn != truth).float())
        detecting = F.binary_cross_entropy_with_logits(logits, replaced)
        self.losses += torch.stack((generating, detecting, torch.ones_like(detecting))).detach()
        return ModelOutput(loss=generating + DETECTOR_WEIGHT * detecting)


@torch.compiler.disable
@torch.no_grad()
def draw_tokens(decoder: nn.Linear, x: Tensor, draws: Tensor) -> Tensor:
    """(n,) ids, each drawn from the decoder's softmax for a state of x (n, width).

    Args:
        draws: (n,) from 0 up to 1: where the cumulated probabilities pass it, the token is.
    """
    ids, size = [], max(1, LOGITS // decoder.out_features)
    for part, draw in zip(x.split(size), draws.split(size), strict=True):
        cumulated = decoder(part).float().softmax(-1).cumsum(-1)
        reached = draw[:, None] * cumulated[:, -1:]
        ids.append(torch.searchsorted(cumulated, reached, right=True).squeeze(-1))
    ids = torch.cat(ids) if ids else draws.long()
    return ids.clamp(max=decoder.out_features - 1)  # rounding can make the product the whole sum


class CollatorWithDraws:
    """Adds to a collator's batch the `draws` of the generator, (rows, seq_len).

    They follow from seed and position alone, as the masks do.
    """

    def __init__(self, collator: DataCollatorForWholeWordMasking):
        self.collator = collator

    def __call__(self, features: list[dict]) -> dict[str, Tensor]:
        batch = self.collator(features)
        length = batch["input_ids"].shape[1]
        keys = [(self.collator.seed, int(each["position"]), _DRAWS) for each in features]
        draws = [np.random.default_rng(key).random(length, dtype=np.float32) for key in keys]
        return batch | {"draws": torch.from_numpy(np.stack(draws))}


class LogOfBothLosses(TrainerCallback):
    """Logs `generator_loss` and `detector_loss`, means over the steps since the last log.

    They take the place of figures that suppose a masked-language model.
    """

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """Puts it behind TrainingLog, which is the first, and before what writes logs down."""
        trainer.callback_handler.callbacks.insert(1, cls())

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        generating, detecting, count = model.losses.tolist()
        model.losses.zero_()
        for entry in (logs, state.log_history[-1]):
            for name in ("bits_per_character", "matrix_product_share"):
                entry.pop(name, None)
            entry["generator_loss"] = round(generating / count, 4)
            entry["detector_loss"] = round(detecting / count, 5)
