"""On a CUDA device (`pytest -m gpu`): every backend that works there agrees with eager."""

from importlib.util import find_spec

import pytest
import torch

import parity


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("sdpa", "fp32"),
        ("sdpa", "bf16"),
        ("flex_attention", "fp32"),
        ("flex_attention", "bf16"),
        ("varlen_attention", "bf16"),
        ("flash_attention_2", "bf16"),
    ],
)
def test_backend_agrees_with_eager(backend, dtype):
    if backend == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    torch.compiler.reset()
    entries = parity.check(backend, parity.DTYPES[dtype], torch.device("cuda"), longest=8192)
    assert [entry for entry in entries if not entry["ok"]] == []
