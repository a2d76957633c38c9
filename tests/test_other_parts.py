"""Models of which a user has replaced or offloaded a part."""

import accelerate
import torch

from batches import documents, pad_rows
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from states import STATE_TOLERANCE, masked_batch


class Wrapper(torch.nn.Module):
    """What takes a part's place and calls it; it has no weight of its own."""

    def __init__(self, part, dimensions: int):
        super().__init__()
        self.part = part
        self.dimensions = dimensions

    def forward(self, x):
        assert x.dim() == self.dimensions
        return self.part(x)


def test_something_else_may_take_the_embeddings_place(make_model):
    """Such as a soft prompt, which counts positions: it is given (batch, sequence)."""
    model, batch = make_model(cls=ChineseModernBertForMaskedLM), pad_rows(documents(30, 20))
    expected = model(**batch).logits
    model.set_input_embeddings(Wrapper(model.get_input_embeddings(), dimensions=2))
    assert torch.equal(model(**batch).logits, expected)


def test_a_decoder_without_a_weight_of_its_own_trains(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40)
    expected = model(**batch).loss
    model.decoder = Wrapper(model.decoder, dimensions=2)
    assert (model(**batch).loss - expected).abs() <= STATE_TOLERANCE * expected


def test_offloaded_weights_give_the_same(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM), pad_rows(documents(30, 20))
    with torch.no_grad():
        expected = model(**batch).logits
        accelerate.cpu_offload(model, execution_device="cpu")
        assert (model(**batch).logits - expected).abs().max() <= STATE_TOLERANCE
