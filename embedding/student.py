"""What a model is before it is trained: fewer layers, longer or white vectors, a bag of words."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from embedding.scripts import to_simplified

# How a bag of words begins, chosen by its retrieval without training (docs/journal.md, 2026-11-27):
# how far below 0 the values of a token as rare as the average of a text lie, in standard
# deviations, how much each unit of inverse document frequency lifts them, and how sharp the bend of
# GELU is.
BIAS, RARITY, SHARPNESS = 1.5, 0.2, 4.0
COUNTED = 50_000  # texts, whose tokens are counted
# Of whitening: texts that are encoded, and the share of the mean variance that is added.
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


def start_as_bag_of_words(model: SentenceTransformer, texts: list[str]) -> None:
    """Sets the weights so that a vector begins as the mean of its tokens' codes, in place.

    By contrast alone it takes long to find out that rare words tell texts apart. This is where it
    begins instead: the layers add nothing yet, each token has a sparse code of its own by random
    weights of the dense layer, with more values above 0 the rarer the token is, and traditional
    characters have the embeddings of simplified ones.

    Args:
        texts: of the training data; their tokens are counted.

    Raises:
        ValueError: if the encoder's layers have no `Wo`, or no dense layer follows it.
    """
    encoder, dense = model[0].auto_model.base_model, model[1]
    outputs = [p for name, p in encoder.named_parameters() if name.endswith("Wo.weight")]
    if not outputs or not isinstance(dense, Dense):
        raise ValueError("start: words needs the layers of a ModernBERT, and vector_size.")
    tokenizer = model.tokenizer
    embeddings = encoder.get_input_embeddings().weight
    with torch.no_grad():
        embeddings.copy_(embeddings[_simplified_tokens(tokenizer.get_vocab(), len(embeddings))])
        for output in outputs:
            output.zero_()
        share, rarity = _counts(tokenizer, texts, len(embeddings))
        weight, bias = _codes(_states_of_tokens(encoder), share, rarity, len(dense.linear.bias))
        dense.linear.weight.copy_(torch.from_numpy(weight))
        dense.linear.bias.copy_(torch.from_numpy(bias))


def check_ends_with_pooling(model: SentenceTransformer) -> None:
    """What `whiten` needs.

    Raises:
        ValueError: if something other than a pooling, and perhaps a normalization, ends the model.
    """
    *_, last = (module for module in model if not isinstance(module, Normalize))
    if not isinstance(last, Pooling):
        raise ValueError(f"whiten: a {type(last).__name__} follows the pooling already.")


def whiten(model: SentenceTransformer, texts: list[str]) -> None:
    """Puts a linear layer behind the pooling that makes the vectors' values alike, in place.

    Less their mean over some texts, the vectors are turned to their principal axes, the widest
    first, and each axis is divided by its spread: what all texts share no longer counts for more
    than what tells them apart (whitening, arXiv:2103.15316). A share of the mean variance is added
    to that of each axis, so that narrow ones, which are noise, do not count in full.

    Args:
        texts: some of the training data.

    Raises:
        ValueError: see `check_ends_with_pooling`.
    """
    check_ends_with_pooling(model)
    normalize = model.pop(-1) if isinstance(model[-1], Normalize) else None
    chosen = np.random.default_rng(0).permutation(len(texts))[:WHITENED]
    vectors = model.encode([texts[n] for n in chosen], show_progress_bar=False).astype(np.float64)
    variances, axes = np.linalg.eigh(np.cov(vectors.T))
    axes = axes[:, ::-1] / np.sqrt(variances[::-1] + SHRINKAGE * variances.mean())
    size = len(variances)
    linear = Dense(size, size, activation_function=nn.Identity())
    with torch.no_grad():
        linear.linear.weight.copy_(torch.from_numpy(axes.T.copy()))
        linear.linear.bias.copy_(torch.from_numpy(-vectors.mean(axis=0) @ axes))
    model.append(linear.to(model.device))
    if normalize is not None:
        model.append(normalize)


def leave_layers_out(model: SentenceTransformer) -> None:
    """Lets the states of a bag of words pass by the layers, in place: a step takes a tenth of the
    time.

    The weights of the layers stay as they are, and add nothing to the states as long as they are
    those of `start_as_bag_of_words`.

    Raises:
        ValueError: if it is not our encoder.
    """
    if model[0].auto_model.config.model_type != "chinese_modernbert":
        raise ValueError("train_layers: only a Chinese ModernBERT can do without its layers.")
    for layer in model[0].auto_model.base_model.layers:
        layer.forward = _pass_by


def _pass_by(
    x: torch.Tensor, plan, places: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    return (x if places is None else x[places]), None


def _simplified_tokens(vocabulary: dict[str, int], size: int) -> torch.Tensor:
    """(size,): of each token, the one that spells it in simplified characters, or itself."""
    simplified = torch.arange(size)
    for token, number in vocabulary.items():
        simplified[number] = vocabulary.get(to_simplified(token), number)
    return simplified


def _states_of_tokens(encoder: nn.Module) -> np.ndarray:
    """(tokens, hidden size): the last state of each token, which no neighbor changes yet."""
    tokens = torch.arange(encoder.config.vocab_size, device=encoder.device).split(1_000)
    states = [encoder(input_ids=each[:, None]).last_hidden_state[:, 0] for each in tokens]
    return torch.cat(states).double().cpu().numpy()


def _counts(tokenizer, texts: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(size,) twice: of each token its share of all tokens, and the logarithm of texts / texts that
    have it."""
    chosen = np.random.default_rng(0).permutation(len(texts))[:COUNTED]
    occurrences, documents = np.zeros(size), np.zeros(size)
    for ids in tokenizer([texts[n] for n in chosen])["input_ids"]:
        tokens, counts = np.unique(ids, return_counts=True)
        occurrences[tokens] += counts
        documents[tokens] += 1
    rarity = np.log((len(chosen) + 1) / (documents + 1))
    return occurrences / occurrences.sum(), rarity


def _codes(
    states: np.ndarray, share: np.ndarray, rarity: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (size, hidden size) and bias (size,) of a dense layer that gives tokens their codes.

    Args:
        states: (tokens, hidden size).
        share, rarity: (tokens,), as `_counts` gives them.
    """
    mean = share @ states
    spread = (states - mean).std(axis=0)
    directions = np.random.default_rng(0).standard_normal((size, states.shape[1]))
    weight = directions / (np.sqrt(states.shape[1]) * spread)
    # How rare a token is can be read from its state, by a linear fit.
    scale = np.sqrt(share)
    known = np.append(states, np.ones((len(states), 1)), axis=1) * scale[:, None]
    fit = np.linalg.lstsq(known, rarity * scale, rcond=None)[0]
    bias = -weight @ mean - BIAS + RARITY * (fit[-1] - share @ rarity)
    return SHARPNESS * (weight + RARITY * fit[:-1]), SHARPNESS * bias
