"""Vectors that begin as bags of words, in which rare words count most.

By contrast alone it takes long to find out that rare words tell texts apart. This is where it
begins instead (docs/journal.md, 2026-11-27): the layers add nothing yet, and each token has a
sparse code of its own by random weights of the dense layer, with more values above 0 the rarer the
token is. Which tokens have similar codes, their embeddings decide: the model's own, or a teacher's
vectors of the tokens alone (as in Model2Vec, https://github.com/MinishLab/model2vec).
"""

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from torch import nn

from embedding.principal_axes import whitening
from embedding.scripts import to_simplified

# Chosen by retrieval without training: how far below 0 the values of a token as rare as the
# average of a text lie, in standard deviations, how much each unit of inverse document frequency
# lifts them, and how sharp the bend of GELU is.
BIAS, RARITY, SHARPNESS = 1.5, 0.2, 4.0
COUNTED = 50_000  # texts, whose tokens are counted
SHRINKAGE = 0.1  # of a teacher's vectors, see `whitening`


def words_of(tokenizer) -> list[str]:
    """The text of each token, without spaces; empty where it has none of its own, as bytes do."""
    specials = set(tokenizer.all_special_ids)
    texts = ("" if n in specials else tokenizer.decode([n]).strip() for n in range(len(tokenizer)))
    return ["" if "\ufffd" in text else text for text in texts]


def start_as_bag_of_words(
    model: SentenceTransformer,
    texts: list[str],
    teacher: tuple[Sequence[str], np.ndarray] | None = None,
) -> None:
    """Sets the weights so that a vector begins as the mean of its tokens' codes, in place.

    Traditional characters get the embeddings of simplified ones.

    Args:
        texts: of the training data; their tokens are counted.
        teacher: words and their vectors, (words, size), which take the place of the embeddings.

    Raises:
        ValueError: if the encoder's layers have no `Wo`, no dense layer follows it, or the teacher
            knows less than half of the tokens.
    """
    encoder, dense = model[0].auto_model.base_model, model[1]
    outputs = [p for name, p in encoder.named_parameters() if name.endswith("Wo.weight")]
    if not outputs or not isinstance(dense, Dense):
        raise ValueError("start: words needs the layers of a ModernBERT, and vector_size.")
    tokenizer = model.tokenizer
    embeddings = encoder.get_input_embeddings().weight
    if teacher is not None:
        words = words_of(tokenizer) + [""] * (len(embeddings) - len(tokenizer))
        vectors, known = _known(words, *teacher)
    share, rarity = _counts(tokenizer, texts, len(embeddings))
    with torch.no_grad():
        if teacher is not None:
            own = embeddings.double().cpu().numpy()
            table = _embeddings_of(vectors, known, own, share, rarity)
            embeddings.copy_(torch.from_numpy(table))
        embeddings.copy_(embeddings[_simplified_tokens(tokenizer.get_vocab(), len(embeddings))])
        for output in outputs:
            output.zero_()
        weight, bias = _codes(_states_of_tokens(encoder), share, rarity, len(dense.linear.bias))
        dense.linear.weight.copy_(torch.from_numpy(weight))
        dense.linear.bias.copy_(torch.from_numpy(bias))


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


def _embeddings_of(
    vectors: np.ndarray,
    known: np.ndarray,
    own: np.ndarray,
    share: np.ndarray,
    rarity: np.ndarray,
) -> np.ndarray:
    """(tokens, embedding size): a teacher's vectors on their principal axes, and one for rarity.

    They are turned as near to the model's own embeddings as a rotation can bring them, so that the
    layers find something of what they know.

    Args:
        vectors, known: as `_known` gives them.
        own: (tokens, embedding size).
        share, rarity: (tokens,), as `_counts` gives them.
    """
    size = min(own.shape[1] - 1, vectors.shape[1])
    mean, matrix = whitening(vectors[known], SHRINKAGE)
    white = (vectors - mean) @ matrix[:, :size]
    white[~known] = np.random.default_rng(0).standard_normal((np.sum(~known), size))
    table = np.zeros_like(own)
    table[:, :size] = white / np.linalg.norm(white, axis=1, keepdims=True)
    table[:, -1] = (rarity - rarity.mean()) / rarity.std() / np.sqrt(size)
    left, _, right = np.linalg.svd((table * share[:, None]).T @ own)
    return table @ (left @ right) * np.linalg.norm(own, axis=1).mean()


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
