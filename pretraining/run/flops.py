"""Operations that the model needs, and the rate at which a machine does matrix products."""

import time
from collections.abc import Sequence

import torch

from configuration_chinese_modernbert import ChineseModernBertConfig


def encoder_flops(config: ChineseModernBertConfig, lengths: Sequence[int]) -> float:
    """Multiplications and additions of one forward of the encoder, without the head.

    Args:
        lengths: tokens of each document; padding costs nothing.
    """
    hidden, window = config.hidden_size, config.local_attention // 2
    projections = 2 * sum(lengths) * hidden * (4 * hidden + 3 * config.intermediate_size)
    seen_globally = sum(n * n for n in lengths)
    seen_locally = sum(
        min(n, 2 * window + 1) * n - min(n, window + 1) * (min(n, window + 1) - 1)
        if n > 2 * window
        else sum(min(n - 1, i + window) - max(0, i - window) + 1 for i in range(n))
        for n in lengths
    )
    layers_global = config.layer_types.count("full_attention")
    layers_local = config.num_hidden_layers - layers_global
    pairs = layers_global * seen_globally + layers_local * seen_locally
    return (
        config.num_hidden_layers * projections
        + 4 * pairs * hidden
        + sum(lengths) * _projection_flops(config)
    )


def _projection_flops(config: ChineseModernBertConfig) -> int:
    """Of a token's way to or from the width of factorized embeddings."""
    factorized = config.embedding_size is not None
    return 2 * config.embedding_width * config.hidden_size if factorized else 0


def training_flops(config: ChineseModernBertConfig, lengths: Sequence[int], masked: float) -> float:
    """Of forward and backward, with the head on the masked tokens alone.

    Args:
        lengths: tokens of each document.
        masked: how many tokens are masked.
    """
    head = 2 * (config.hidden_size**2 + config.embedding_width * config.vocab_size)
    head += _projection_flops(config)
    return 3 * (encoder_flops(config, lengths) + masked * head)


def matrix_product(config: ChineseModernBertConfig, dtype: torch.dtype, device: torch.device):
    """A function that multiplies at the shape of the widest projection, and a call's operations."""
    rows, hidden, width = 4096, config.hidden_size, 2 * config.intermediate_size
    # On a GPU one product takes less time than its launch, so a call does a hundred.
    count = 1 if device.type == "cpu" else 100
    x = torch.randn(rows, hidden, device=device, dtype=dtype)
    weight = torch.randn(hidden, width, device=device, dtype=dtype)
    out = torch.empty(rows, width, device=device, dtype=dtype)

    def products():
        for _ in range(count):
            torch.mm(x, weight, out=out)

    return products, 2 * count * rows * hidden * width


def synchronized(device: torch.device) -> float:
    """The time in seconds once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_product_rate(
    config: ChineseModernBertConfig, dtype: torch.dtype, device: torch.device
) -> float:
    """Operations a second of plain matrix products, the best of five rounds."""
    product, flops = matrix_product(config, dtype, device)
    product()
    seconds = []
    for _ in range(5):
        start = synchronized(device)
        product()
        seconds.append(synchronized(device) - start)
    return flops / min(seconds)
