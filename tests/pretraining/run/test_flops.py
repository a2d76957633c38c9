"""Operations are counted as by hand."""

import torch

from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.run.flops import encoder_flops, matrix_product_rate, training_flops

CONFIG = ChineseModernBertConfig(
    num_hidden_layers=3, hidden_size=8, num_attention_heads=2, intermediate_size=12, vocab_size=50
)
LENGTHS = [1, 40, 300]


def test_operations_of_the_encoder():
    projections = 3 * 341 * 2 * (8 * 24 + 8 * 8 + 8 * 24 + 12 * 8)
    everyone = sum(n * n for n in LENGTHS)
    near = sum(1 for n in LENGTHS for i in range(n) for j in range(n) if abs(i - j) <= 64)
    # Of three layers one is global; a pair costs a product for its score and one for its value.
    assert encoder_flops(CONFIG, LENGTHS) == projections + 4 * 8 * (everyone + 2 * near)


def test_operations_of_training():
    """The head transforms and decodes masked tokens; backward costs twice the forward."""
    head = 10 * 2 * (8 * 8 + 8 * 50)
    assert training_flops(CONFIG, LENGTHS, 10) == 3 * (encoder_flops(CONFIG, LENGTHS) + head)


def test_operations_of_factorized_embeddings():
    """Every token is projected up, masked ones down again to a decoder that is narrower."""
    values = CONFIG.to_dict() | {"embedding_size": 4}
    narrow = ChineseModernBertConfig.from_dict(values)
    up = sum(LENGTHS) * 2 * 4 * 8
    assert encoder_flops(narrow, LENGTHS) == encoder_flops(CONFIG, LENGTHS) + up
    head = 10 * 2 * (8 * 8 + 8 * 4 + 4 * 50)
    assert training_flops(narrow, LENGTHS, 10) == 3 * (encoder_flops(narrow, LENGTHS) + head)


def test_the_rate_of_matrix_products_is_a_rate():
    assert 1e8 < matrix_product_rate(CONFIG, torch.float32, torch.device("cpu")) < 1e15
