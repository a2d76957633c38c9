"""What changes a model before training: fewer layers, longer vectors, white ones."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from embedding.principal_axes import whitening

# Of whitening: texts that are encoded, and how far the axes' variances are shrunk to their mean.
WHITENED, SHRINKAGE = 8_000, 1.0


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
    (docs/journal.md, 2026-11-27). The new layer begins with random directions and their opposites,
    so that the difference of two of its values is a value of the states, turned.

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
    directions = nn.init.orthogonal_(torch.empty(-(-size // 2), dense.in_features))
    with torch.no_grad():
        dense.linear.weight.copy_(torch.cat([directions, -directions])[:size])
        dense.linear.bias.zero_()
    model[1] = Pooling(size, model[1].pooling_mode, model[1].include_prompt)
    model.insert(1, dense)


def whiten(model: SentenceTransformer, texts: list[str]) -> None:
    """Puts a linear layer behind the pooling that makes the vectors' values alike, in place.

    Less their mean over some texts, the vectors are turned to their principal axes, the widest
    first; see `embedding.principal_axes.whitening`.

    Args:
        texts: some of the training data.

    Raises:
        ValueError: if something other than a pooling, and perhaps a normalization, ends the model.
    """
    *_, last = (module for module in model if not isinstance(module, Normalize))
    if not isinstance(last, Pooling):
        raise ValueError(f"whiten: a {type(last).__name__} follows the pooling already.")
    normalize = model.pop(-1) if isinstance(model[-1], Normalize) else None
    chosen = np.random.default_rng(0).permutation(len(texts))[:WHITENED]
    vectors = model.encode([texts[n] for n in chosen], show_progress_bar=False)
    mean, matrix = whitening(vectors, SHRINKAGE)
    size = len(mean)
    linear = Dense(size, size, activation_function=nn.Identity())
    with torch.no_grad():
        linear.linear.weight.copy_(torch.from_numpy(matrix.T))
        linear.linear.bias.copy_(torch.from_numpy(-mean @ matrix))
    model.append(linear.to(model.device))
    if normalize is not None:
        model.append(normalize)
