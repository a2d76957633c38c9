"""Shared by the tests of the model: a configuration small enough to run everywhere."""

import pytest
import torch

from configuration_chinese_modernbert import ChineseModernBertConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny shapes gain nothing from threads, and on a busy machine they cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_config():
    """Returns `tiny_config(**overrides)`: three layers (global, local, local) of two heads."""

    def build(**overrides) -> ChineseModernBertConfig:
        shape = {
            "vocab_size": 50,
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
