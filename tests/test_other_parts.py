"""Models of which a user has replaced, offloaded or moved a part."""

import accelerate
import pytest
import torch
from accelerate.hooks import attach_execution_device_hook

from batches import documents, pad_rows
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForMultipleChoice,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertModel,
)
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


def test_something_else_may_take_the_final_norms_place(make_model):
    """Such as nothing, for whoever wants the states before it."""
    model, batch = make_model(), pad_rows(documents(30, 20))
    expected, norm = model(**batch).last_hidden_state, model.final_norm
    model.set_input_embeddings(Wrapper(model.get_input_embeddings(), dimensions=2))
    model.final_norm = torch.nn.Identity()
    assert (norm(model(**batch).last_hidden_state) - expected).abs().max() <= STATE_TOLERANCE
    assert model.attention_backend()[0] == "sdpa"


def test_a_decoder_without_a_weight_of_its_own_trains(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40)
    expected = model(**batch).loss
    model.decoder = Wrapper(model.decoder, dimensions=2)
    assert (model(**batch).loss - expected).abs() <= STATE_TOLERANCE * expected


@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_offloaded_weights_give_the_same(make_model, cls):
    model, batch = make_model(cls=cls), pad_rows(documents(30, 20))
    with torch.no_grad():
        expected = model(**batch)[0]
        accelerate.cpu_offload(model, execution_device="cpu")
        assert (model(**batch)[0] - expected).abs().max() <= STATE_TOLERANCE
    assert model.attention_backend() == ("sdpa", "as asked for")


def test_the_backend_of_a_model_without_values_wants_a_device(make_model):
    model = make_model(None).to("meta")
    with pytest.raises(ValueError, match=r"on meta: give the device"):
        model.attention_backend()
    assert model.attention_backend(torch.device("cpu")) == ("sdpa", "the fastest on cpu")


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_layers_may_share_their_weights(make_model, backend):
    model, batch = make_model(backend, cls=ChineseModernBertForMaskedLM).train(), masked_batch(40)
    encoder = model.model
    layer = encoder.layers[0]
    encoder.layers = torch.nn.ModuleList([layer, layer])
    loss = model(**batch).loss
    assert (loss - model.eval()(**batch).loss).abs() <= STATE_TOLERANCE * loss


def test_an_encoder_without_the_wrapper_of_mixed_precision_gives_the_same(make_model, monkeypatch):
    # A process has one precision; earlier tests' Trainers have left theirs.
    for state in (accelerate.state.AcceleratorState, accelerate.state.PartialState):
        monkeypatch.setattr(state, "_shared_state", {})
    model, batch = make_model(cls=ChineseModernBertModel), pad_rows(documents(30, 20))
    with torch.no_grad():
        expected = model(**batch)[0]
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        plain = accelerator.unwrap_model(accelerator.prepare(model), keep_fp32_wrapper=False)
        assert torch.equal(plain(**batch)[0], expected)


def divided(model):
    """The model with what comes after its first layer on another device, as `device_map` does it.

    Tensors of "meta" have no values, but torch refuses to mix them with others.
    """
    encoder = model.base_model
    heads = [part for part in model.children() if part not in (encoder, *encoder.children())]
    for part in (*encoder.layers[1:], encoder.final_norm, *heads):
        part.to("meta")
        attach_execution_device_hook(part, "meta")
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_layers_may_lie_on_two_devices(make_model, backend, training):
    batch = pad_rows(documents(40, 20))
    tokens, rows = batch["input_ids"], torch.tensor([0, 1])
    answers = {"start_positions": rows, "end_positions": rows}
    choices = {name: x[:, None].expand(-1, 2, -1) for name, x in batch.items()}
    for cls, inputs in {
        ChineseModernBertModel: batch,
        ChineseModernBertForMaskedLM: masked_batch(40, 20),
        ChineseModernBertForSequenceClassification: batch | {"labels": rows},
        ChineseModernBertForTokenClassification: batch | {"labels": tokens % 2},
        ChineseModernBertForQuestionAnswering: batch | answers,
        ChineseModernBertForMultipleChoice: choices | {"labels": rows},
    }.items():
        model = make_model(backend, cls).train(training)
        whole = model(**inputs, output_hidden_states=True)
        parts = divided(model)(**inputs, output_hidden_states=True)
        for name, tensor in whole.items():
            if name == "hidden_states":
                assert [x.device.type for x in parts[name]][1:3] == ["cpu", "meta"]
            else:
                assert (parts[name].device.type, parts[name].shape) == ("meta", tensor.shape)
