"""torch.compile: one graph for all batches, in training and inference, with the same numbers."""

import copy

import pytest
import torch

from batches import PORTABLE_BACKENDS, documents, flatten, pack_rows, pad_rows
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel

BATCHES = [
    pad_rows(documents(50, 200, 131), "left"),
    pad_rows(documents(64, 65, 1, 129), "right"),
    pad_rows(documents(128, 128)),
    pad_rows(documents(30), "left"),
    pad_rows(documents(7, 9, 11), "left"),
    pad_rows(documents(300, 2)),
    pad_rows(documents(*[5] * 9), "left"),
    pack_rows(documents(70, 1, 130, 65), documents(9, 200), width=280),
    flatten(documents(70, 1, 130, 65, 200)),
    pad_rows(documents(500)),
]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
@pytest.mark.parametrize("backend", PORTABLE_BACKENDS)
def test_ten_different_batches_share_one_graph(make_model, backend, cls, training):
    model = make_model(backend, cls)
    with_loss = training and cls is ChineseModernBertForMaskedLM
    model.train(training)
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count)
    for batch in BATCHES:
        ids = batch["input_ids"]
        if with_loss:
            chosen = torch.arange(ids.shape[1]) % 4 == 1
            batch = {**batch, "labels": ids.masked_fill(~chosen, -100)}
        with torch.set_grad_enabled(training):
            ours, reference = compiled(**batch), model(**batch)
        ours, reference = (x.loss if with_loss else x[0] for x in (ours, reference))
        assert (ours - reference).abs().max() <= 1e-5
    assert len(graphs) == 1


def test_gradients_of_a_compiled_model_are_the_same(make_model):
    torch._dynamo.reset()
    model = make_model("sdpa", ChineseModernBertForMaskedLM).train()
    compiled = torch.compile(model, backend="aot_eager")
    for batch in BATCHES[:3]:
        batch = {**batch, "labels": batch["input_ids"]}
        gradients = []
        for run in (compiled, model):
            model.zero_grad()
            run(**batch).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        for one, other in zip(*gradients, strict=True):
            assert (one - other).abs().max() <= 1e-5 * max(1, other.abs().max())


def test_attention_weights_are_still_to_be_had(make_model):
    torch._dynamo.reset()
    model = make_model("eager")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        ours = compiled(**BATCHES[0], output_attentions=True).attentions
        reference = model(**BATCHES[0], output_attentions=True).attentions
    for one, other in zip(ours, reference, strict=True):
        assert (one - other).abs().max() <= 1e-5


# --- model.compile(): the pieces that treat each token by itself ----------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiled_pieces_serve_all_layers_and_batches(make_model, training):
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model("sdpa", ChineseModernBertForMaskedLM, num_hidden_layers=9)
    reference = copy.deepcopy(model)
    model.train(training).compile(backend=count)
    for number, batch in enumerate(BATCHES):
        batch = {**batch, "labels": batch["input_ids"]}
        with torch.set_grad_enabled(training):
            ours, theirs = model(**batch).loss, reference.train(training)(**batch).loss
        assert (ours - theirs).abs() <= 1e-5
        if number == 0:
            first = len(graphs)
    # Embeddings, final norm, both halves of a layer, and the first half of the first layer, which
    # has no norm before it.
    assert len(graphs) == first == 5


def test_gradients_of_compiled_pieces_are_the_same(make_model):
    torch._dynamo.reset()
    model = make_model("sdpa", ChineseModernBertForMaskedLM).train()
    reference = copy.deepcopy(model)
    model.compile(backend="aot_eager")
    for batch in BATCHES[:3]:
        batch = {**batch, "labels": batch["input_ids"]}
        for one in (model, reference):
            one.zero_grad()
            one(**batch).loss.backward()
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            assert (one.grad - other.grad).abs().max() <= 1e-5 * max(1, other.grad.abs().max())


def test_a_copy_of_a_compiled_model_has_its_own_weights(make_model):
    torch._dynamo.reset()
    model = make_model("sdpa")
    model.compile(backend="eager")
    with torch.no_grad():
        before = model(**BATCHES[0]).last_hidden_state
        copied = copy.deepcopy(model)
        for weight in copied.parameters():
            weight.zero_()
        assert (copied(**BATCHES[0]).last_hidden_state == 0).all()
        assert torch.equal(model(**BATCHES[0]).last_hidden_state, before)
