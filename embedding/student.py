"""A smaller model from a larger one: its first layers."""

from sentence_transformers.base.model import BaseModel
from torch import nn


def keep_layers(model: BaseModel, count: int) -> None:
    """Drops all but the first layers of the encoder, in place.

    Raises:
        ValueError: if the encoder has fewer, or keeps its layers elsewhere than in `layers`.
    """
    encoder = model[0].auto_model.base_model
    layers = getattr(encoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"layers: {type(encoder).__name__} has no list of layers to shorten.")
    if count > len(layers):
        raise ValueError(f"layers: {count}, but the model has {len(layers)}.")
    encoder.layers = layers[:count]
    encoder.config.num_hidden_layers = count
    if getattr(encoder.config, "layer_types", None):
        encoder.config.layer_types = encoder.config.layer_types[:count]
