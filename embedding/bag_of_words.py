"""Vectors that begin as bags of words, in which rare words count most.

By contrast alone it takes long to find out that rare words tell texts apart. This is where it
begins instead (docs/journal.md, 2026-11-27): beside the layers' states each token has a sparse code
of its own by random weights of a dense layer, with more values above 0 the rarer the token is.
Which tokens have similar codes, a teacher's vectors of the tokens alone decide (as in Model2Vec,
https://github.com/MinishLab/model2vec).
"""

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from embedding.principal_axes import whitening
from embedding.scripts import to_simplified
from word_vectors_chinese_modernbert import WordVectors

# Chosen by retrieval without training: how far below 0 the values of a token as rare as the
# average of a text lie, in standard deviations, how much each unit of inverse document frequency
# lifts them, and how sharp the bend of GELU is.
BIAS, RARITY, SHARPNESS = 1.5, 0.2, 4.0
COUNTED = 50_000  # texts, whose tokens are counted
SHRINKAGE = 0.1  # of a teacher's vectors, see `whitening`
# The states of the layers at the start: their share of a vector's values and of its variance, and
# how they are whitened.
STATES, WHITENED, SHRINKAGE_OF_STATES = 0.25, 4_000, 1.0


def token_texts(tokenizer) -> list[str]:
    """The text of each token, without spaces; empty where it has none of its own, as bytes do."""
    specials = set(tokenizer.all_special_ids)
    texts = ("" if n in specials else tokenizer.decode([n]).strip() for n in range(len(tokenizer)))
    return ["" if "\ufffd" in text else text for text in texts]


def put_words_beside(model: SentenceTransformer, size: int, word_size: int) -> None:
    """Puts codes of words beside the encoder's states, and their mean behind both, in place.

    What follows the encoder is taken away.

    Args:
        size: values of a vector; a quarter of them, or the hidden size, are the states'.
        word_size: values of a word's vector in the table.
    """
    hidden = model[0].get_embedding_dimension()
    of_states = min(hidden, round(STATES * size))
    vocab_size = model[0].auto_model.get_input_embeddings().num_embeddings
    words = WordVectors(vocab_size, word_size, size - of_states, hidden, of_states)
    while len(model) > 1:
        model.pop(-1)
    model.append(words.to(model.device))
    model.append(Pooling(size))


def start_as_bag_of_words(
    model: SentenceTransformer, texts: list[str], teacher: tuple[Sequence[str], np.ndarray]
) -> None:
    """Sets the weights of `put_words_beside`, in place.

    Traditional characters begin as simplified ones. The states are turned to their principal axes
    and made white over the texts, as the codes are nearly from the start.

    Args:
        texts: of the training data; their tokens are counted.
        teacher: words and their vectors, (words, size).

    Raises:
        ValueError: if the teacher knows less than half of the tokens.
    """
    transformer, words, pooling = model[0], model[1], model[2]
    tokenizer, vocab_size = model.tokenizer, words.vocab_size
    share, rarity = _counts(tokenizer, texts, vocab_size)
    known = token_texts(tokenizer) + [""] * (vocab_size - len(tokenizer))
    table = _table(*_known(known, *teacher), rarity, words.size)
    table = table[_simplified_tokens(tokenizer.get_vocab(), vocab_size)]
    _set(words.codes, *_codes(table, share, rarity, words.code_size))
    with torch.no_grad():
        words.table.weight.copy_(torch.from_numpy(table))

    chosen = np.random.default_rng(0).permutation(len(texts))[:WHITENED]
    chosen = [texts[n] for n in chosen]
    states = _encode([transformer, Pooling(words.hidden_size, pooling.pooling_mode)], chosen)
    mean, matrix = whitening(states, SHRINKAGE_OF_STATES)
    matrix = matrix[:, : words.state_size]
    _set(words.states, matrix.T, -mean @ matrix)
    variances = _encode([transformer, words, pooling], chosen).var(axis=0)
    of_codes, of_states = variances[: words.code_size].sum(), variances[words.code_size :].sum()
    with torch.no_grad():
        for part in words.states.parameters():
            part.mul_(np.sqrt(STATES / (1 - STATES) * of_codes / of_states))


def _encode(modules: list[nn.Module], texts: list[str]) -> np.ndarray:
    model = SentenceTransformer(modules=modules, device=modules[0].auto_model.device)
    return model.encode(texts, show_progress_bar=False)


def _set(linear: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def leave_layers_out(model: SentenceTransformer) -> None:
    """Trains words alone, in place: states are 0 and cost nothing.

    The weights of encoder and states stay as they are.

    Raises:
        ValueError: if it is not our encoder.
    """
    if model[0].auto_model.config.model_type != "chinese_modernbert":
        raise ValueError("train_layers: only a Chinese ModernBERT can do without its layers.")
    for layer in model[0].auto_model.base_model.layers:
        layer.forward = _pass_by
    words = model[1]
    words.states.forward = lambda states: states.new_zeros(*states.shape[:-1], words.state_size)


def _pass_by(x: torch.Tensor, plan, places: torch.Tensor | None = None) -> torch.Tensor:
    return x if places is None else x[places]


def _known(
    tokens: list[str], words: Sequence[str], vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (tokens, size), and which of the tokens the teacher knows, (tokens,)."""
    places = {word: place for place, word in enumerate(words)}
    found = np.array([places.get(text, -1) for text in tokens])
    if (found >= 0).mean() < 0.5:
        raise ValueError(
            f"word_vectors: the teacher's words hold {(found >= 0).sum():,} of the model's "
            f"{len(tokens):,} tokens. Make them with python -m embedding.sentences --vocabulary "
            "MODEL and embedding.distill."
        )
    return np.asarray(vectors[found], dtype=np.float64), found >= 0


def _table(vectors: np.ndarray, known: np.ndarray, rarity: np.ndarray, size: int) -> np.ndarray:
    """(tokens, size): a teacher's vectors on their principal axes, and one value for rarity.

    Args:
        vectors, known: as `_known` gives them.
        rarity: (tokens,), as `_counts` gives it.
    """
    if vectors.shape[1] < size - 1:
        raise ValueError(
            f"word_size: {size} needs a teacher's vectors of {size - 1} values, but word_vectors "
            f"has {vectors.shape[1]}. Set word_size to {vectors.shape[1] + 1} at most."
        )
    mean, matrix = whitening(vectors[known], SHRINKAGE)
    table = np.zeros((len(vectors), size))
    white = ((vectors - mean) @ matrix)[:, : size - 1]
    white[~known] = np.random.default_rng(0).standard_normal((np.sum(~known), white.shape[1]))
    table[:, : white.shape[1]] = white / np.linalg.norm(white, axis=1, keepdims=True)
    table[:, -1] = (rarity - rarity.mean()) / rarity.std() / np.sqrt(size)
    return table


def _simplified_tokens(vocabulary: dict[str, int], size: int) -> torch.Tensor:
    """(size,): of each token, the one that spells it in simplified characters, or itself."""
    simplified = torch.arange(size)
    for token, number in vocabulary.items():
        simplified[number] = vocabulary.get(to_simplified(token), number)
    return simplified


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
    """Weight (size, word size) and bias (size,) of a dense layer that gives tokens their codes.

    Args:
        states: (tokens, word size), vectors of the tokens.
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
