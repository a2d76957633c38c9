"""Vectors of words beside the encoder's states: a module of sentence-transformers.

That library alone loads it, for a model whose `modules.json` names it.
"""

import shutil
from pathlib import Path
from typing import Self

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor, nn


class WordVectors(Module):
    """Puts a code of each token, which no neighbor changes, before its state.

    The mean over a text then has both: which words there are, and what the layers understand. A
    code is a dense layer with GELU over a table of vectors; states are turned by a linear layer.

    Args:
        vocab_size: tokens of the table.
        size: values of a vector in the table.
        code_size: values of a code.
        hidden_size: values of an encoder's state.
        state_size: values that are left of them.
    """

    config_keys = ["vocab_size", "size", "code_size", "hidden_size", "state_size"]

    def __init__(
        self, vocab_size: int, size: int, code_size: int, hidden_size: int, state_size: int
    ):
        super().__init__()
        self.vocab_size, self.size, self.code_size = vocab_size, size, code_size
        self.hidden_size, self.state_size = hidden_size, state_size
        self.table = nn.Embedding(vocab_size, size)
        self.codes = nn.Linear(size, code_size)
        self.states = nn.Linear(hidden_size, state_size)

    def forward(self, features: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        """`token_embeddings` (batch, tokens, hidden_size) and `input_ids` (batch, tokens) ->
        `token_embeddings` (batch, tokens, code_size + state_size)."""
        codes = nn.functional.gelu(self.codes(self.table(features["input_ids"])))
        states = self.states(features["token_embeddings"])
        features["token_embeddings"] = torch.cat([codes, states], dim=-1)
        return features

    def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs) -> None:
        """Writes configuration and weights into a folder, and this code into the one above it,
        where the library looks for it."""
        self.save_config(output_path)
        shutil.copy(__file__, Path(output_path).parent / Path(__file__).name)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs) -> Self:
        """Reads what `save` wrote; `kwargs` are the library's, such as the folder's name."""
        where = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        options = {name: kwargs[name] for name in where if name in kwargs}
        module = cls(**cls.load_config(model_name_or_path, **options))
        return cls.load_torch_weights(model_name_or_path, model=module, **options)
