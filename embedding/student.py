"""Changes of a model's shape before it is trained: fewer layers, longer vectors."""

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
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


def widen_vectors(model: SentenceTransformer, size: int) -> None:
    """Puts a dense layer with GELU between the tokens' states and their pooling, in place.

    A text's vector is the mean over its tokens, which can tell apart only as many words as it has
    values: with 768 values instead of 256, questions find their paragraphs better
    (docs/journal.md, 2026-11-27). The new layer has random weights.

    Raises:
        ValueError: if something other than a pooling follows the encoder.
    """
    if not isinstance(model[1], Pooling):
        raise ValueError(
            f"vector_size: a {type(model[1]).__name__} follows the encoder, not its pooling. "
            "Leave vector_size out: the model has its own."
        )
    dense = Dense(
        model[1].embedding_dimension,
        size,
        activation_function=nn.GELU(),
        module_input_name="token_embeddings",
    )
    model[1] = Pooling(size, model[1].pooling_mode, model[1].include_prompt)
    model.insert(1, dense)
