"""torch.compile: one graph for all batches, in training and inference, with the same numbers."""

import copy

import pytest
import torch

from batches import documents, flatten, pack_rows, pad_rows
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel
from modernbert import WITH_BIASES

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


# Each pair of backend, class and mode is there.
@pytest.mark.parametrize(
    ("backend", "cls", "training", "settings"),
    [
        ("eager", ChineseModernBertModel, False, {}),
        ("eager", ChineseModernBertForMaskedLM, True, {}),
        ("sdpa", ChineseModernBertModel, True, {}),
        ("sdpa", ChineseModernBertForMaskedLM, False, {}),
        ("sdpa", ChineseModernBertForMaskedLM, True, WITH_BIASES),
    ],
)
def test_ten_different_batches_share_one_graph(make_model, backend, cls, training, settings):
    # A global layer and a local one: each takes seconds to trace.
    model = make_model(backend, cls, num_hidden_layers=2, **settings)
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
    model = make_model("sdpa", ChineseModernBertForMaskedLM, num_hidden_layers=2).train()
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


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_states_and_attention_weights_can_be_asked_for(make_model, backend):
    torch._dynamo.reset()
    model = make_model(backend, num_hidden_layers=2)
    compiled = torch.compile(model, backend="eager")
    options = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        ours, reference = compiled(**BATCHES[0], **options), model(**BATCHES[0], **options)
    for name in ("attentions", "hidden_states"):
        for one, other in zip(ours[name], reference[name], strict=True):
            assert (one - other).abs().max() <= 1e-5


def test_hidden_states_leave_the_graphs_as_few_as_they_are(make_model):
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model("sdpa", num_hidden_layers=2)
    compiled = torch.compile(model, backend=count)
    for batch in BATCHES[:4]:
        with torch.no_grad():
            ours = compiled(**batch, output_hidden_states=True).hidden_states
            reference = model(**batch, output_hidden_states=True).hidden_states
        for one, other in zip(ours, reference, strict=True):
            assert (one - other).abs().max() <= 1e-5
    assert len(graphs) == 1


def test_noise_on_the_embeddings_works_in_a_compiled_model(make_model):
    torch._dynamo.reset()
    model = make_model("sdpa", num_hidden_layers=2)
    seen = []

    def double(_module, _inputs, output):
        seen.append(output.shape)
        return 2 * output

    model.get_input_embeddings().register_forward_hook(double)
    compiled = torch.compile(model, backend="eager")
    for batch in BATCHES[:2]:
        assert (compiled(**batch)[0] - model(**batch)[0]).abs().max() <= 1e-5
        assert set(seen) == {(*batch["input_ids"].shape, 32)}
        seen.clear()


# --- model.compile(): the pieces that treat each token by itself ----------------------------------


@pytest.mark.parametrize(
    ("training", "settings", "pieces"),
    [(False, {}, 5), (True, {}, 5), (False, WITH_BIASES, 4)],
    ids=["inference", "training", "inference with LayerNorm and biases"],
)
def test_compiled_pieces_serve_all_layers_and_batches(make_model, training, settings, pieces):
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model("sdpa", ChineseModernBertForMaskedLM, num_hidden_layers=9, **settings)
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
    # has no norm before it. A final norm that is torch's own LayerNorm is left as it is.
    assert len(graphs) == first == pieces


@pytest.mark.parametrize("by_layer", [False, True])
def test_gradients_of_compiled_pieces_are_the_same(make_model, by_layer):
    """By layer is what `accelerate` calls regional compilation."""
    torch._dynamo.reset()
    model = make_model("sdpa", ChineseModernBertForMaskedLM).train()
    reference = copy.deepcopy(model)
    for module in model.model.layers if by_layer else [model]:
        module.compile(backend="aot_eager")
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


def test_what_is_compiled_is_not_taken_for_an_export_where_torch_says_so(make_model, monkeypatch):
    # torch 2.11 answers so in every graph that torch.compile makes.
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    model = make_model("eager", ChineseModernBertForMaskedLM, num_hidden_layers=1).train()
    batch = BATCHES[1]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    losses = [run(**batch, labels=batch["input_ids"]).loss for run in (compiled, model)]
    assert torch.allclose(*losses)
