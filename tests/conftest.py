"""Shared by the tests of the model: a configuration small enough to run everywhere."""

import os

# Tiny shapes gain nothing from threads, and on a busy machine they cost tenfold. Set before torch
# comes, and for the processes that tests start; as many everywhere, since they decide the order of
# sums.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from batches import VOCAB
from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertModel


@pytest.fixture(scope="session")
def tiny_config():
    """Returns `tiny_config(**overrides)`: three layers (global, local, local) of two heads."""

    def build(**overrides) -> ChineseModernBertConfig:
        shape = {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            # Ten times the real one: at this width the default leaves attention nearly uniform
            # and the blocks nearly silent, so a wrong mask would move nothing.
            "initializer_range": 0.2,
        }
        return ChineseModernBertConfig(**(shape | overrides))

    return build


@pytest.fixture(scope="session")
def make_model(tiny_config):
    """Returns `make_model(backend, cls, seed, **config)`: a model in eval mode."""

    def build(backend="sdpa", cls=ChineseModernBertModel, seed=0, **overrides):
        torch.manual_seed(seed)
        model = cls._from_config(tiny_config(**overrides), attn_implementation=backend)
        return model.eval()

    return build
