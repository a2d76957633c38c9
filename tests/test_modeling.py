"""The encoder and its masked-language-modeling head.

What holds for every attention backend is tested on every backend, against the eager reference
and against a forward written out by hand. A document must come out the same however it is
presented: alone, padded on either side, packed into a row with others, or flattened.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_hook
from transformers import DataCollatorWithFlattening

import attention_chinese_modernbert as attention
from batches import (
    PORTABLE_BACKENDS,
    SHAPES,
    VOCAB,
    documents,
    flatten,
    pack_rows,
    pad_rows,
    real_tokens,
)
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel
from modernbert import WITH_BIASES
from states import (
    STATE_TOLERANCE,
    assert_same_gradients,
    masked_batch,
    states_alone,
    states_of,
)

GLOBAL, LOCAL = "full_attention", "sliding_attention"

backends = pytest.mark.parametrize("backend", PORTABLE_BACKENDS)


# --- one forward, written out by hand ---------------------------------------------------------


def by_hand(model, ids):
    """The paper's architecture for one document, without a line of the model's own code."""
    config, weights = model.config, model.state_dict()
    heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    position = torch.arange(len(ids))

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weights[name]

    def turn(x, theta):  # pairs (i, i + head_size / 2) are complex numbers
        frequency = theta ** (-torch.arange(0, head_size, 2) / head_size)
        first, second = x.chunk(2, dim=-1)
        angle = (position[:, None] * frequency)[:, None]
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), dim=-1)

    x = norm(weights["embeddings.tok_embeddings.weight"][ids], "embeddings.norm.weight")
    for i, layer_type in enumerate(config.layer_types):
        layer = f"layers.{i}."
        normed = x if i == 0 else norm(x, layer + "attn_norm.weight")
        q, k, v = (
            part.view(len(ids), heads, head_size)
            for part in (normed @ weights[layer + "attn.Wqkv.weight"].T).chunk(3, dim=-1)
        )
        theta = 80_000.0 if layer_type == GLOBAL else 10_000.0
        scores = torch.einsum("qhd,khd->hqk", turn(q, theta), turn(k, theta)) / head_size**0.5
        if layer_type == LOCAL:
            distance = (position[:, None] - position).abs()
            scores[:, distance > config.local_attention // 2] = -torch.inf
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ weights[layer + "attn.Wo.weight"].T
        normed = norm(x, layer + "mlp_norm.weight")
        up, gate = (normed @ weights[layer + "mlp.Wi.weight"].T).chunk(2, dim=-1)
        x = x + (F.gelu(up) * gate) @ weights[layer + "mlp.Wo.weight"].T
    return norm(x, "final_norm.weight")


@backends
def test_the_model_is_the_paper_written_out(make_model, backend):
    model = make_model(backend)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.RMSNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # at one, a forgotten norm weight is unseen
    (doc,) = documents(200)
    difference = states_of(model, {"input_ids": doc[None]}) - by_hand(model, doc)
    assert difference.abs().max() <= STATE_TOLERANCE


# --- inference on a CPU, so many tokens at a time ---------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, "1,000 tokens"])
@backends
def test_inference_in_chunks_agrees_with_all_at_once(make_model, backend, shape, monkeypatch):
    monkeypatch.setattr(attention, "TOKEN_CHUNK", 128)
    batch = SHAPES[shape]() if shape in SHAPES else pad_rows(documents(1000))
    model = make_model(backend)
    at_once = model(**batch, output_hidden_states=True).hidden_states
    layers = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _i, out: layers.append(out))
    with torch.no_grad():
        chunked = model(**batch, output_hidden_states=True).hidden_states
    for ours, reference in zip(chunked, at_once, strict=True):
        assert (ours - reference).abs().max() <= STATE_TOLERANCE
    # What a hook was given is still what it was given, though inference overwrites what it can.
    for states, layer in zip(chunked[1:-1], layers[:-1], strict=True):
        assert torch.equal(states[real_tokens(batch)], layer)


@pytest.mark.parametrize(("name", "shape"), [("embeddings", (2, 40)), ("final_norm", (60,))])
def test_a_hook_outside_of_the_layers_sees_all_tokens_at_once(make_model, name, shape, monkeypatch):
    monkeypatch.setattr(attention, "TOKEN_CHUNK", 16)
    model, batch, seen = make_model(), pad_rows(documents(40, 20)), []
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        getattr(model, name).register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
        assert (model(**batch).last_hidden_state - expected).abs().max() <= STATE_TOLERANCE
    assert seen == [(*shape, model.config.hidden_size)]


@backends
def test_a_hook_on_a_layer_may_change_its_states(make_model, backend):
    model, batch = make_model(backend), pad_rows(documents(30, 20))
    expected = model(**batch).last_hidden_state
    hook = model.layers[1].register_forward_hook(lambda _m, _i, out: out + 1)
    assert (model(**batch).last_hidden_state - expected).abs().max() > 0.01
    hook.remove()
    seen = []
    model.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    attentions = model(**batch, output_attentions=True).attentions
    assert torch.is_tensor(seen[0][0]) and len(attentions) == model.config.num_hidden_layers


@pytest.mark.parametrize(("part", "activation"), [("act", "gelu"), ("Wi", "linear")])
def test_what_a_hook_inside_a_layer_was_given_stays_as_it_was(make_model, part, activation):
    model, seen = make_model(hidden_activation=activation), []
    hooked = getattr(model.layers[0].mlp, part)
    hooked.register_forward_hook(lambda _m, _i, out: seen.append(out))
    batch = pad_rows(documents(20, 30))
    with torch.no_grad():
        model(**batch)
    model(**batch)
    assert (seen[0] - seen[1]).abs().max() <= STATE_TOLERANCE


def test_a_hook_on_all_modules_sees_each_projection_in_inference_too(make_model):
    model, batch, seen = make_model(), pad_rows(documents(20, 30)), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        handle.remove()
    assert {layer.mlp.Wi for layer in model.layers} <= set(seen)


def test_inference_in_chunks_works_under_autocast(make_model, monkeypatch):
    model, batch = make_model("sdpa"), pad_rows(documents(50, 200, 131), "left")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        at_once = model(**batch).last_hidden_state
        monkeypatch.setattr(attention, "TOKEN_CHUNK", 128)
        chunked = model(**batch).last_hidden_state
    # bf16 keeps 8 bits, and states are of size one.
    assert (chunked - at_once).abs().max() <= 2**-6


class Doubled(torch.nn.Module):
    """Around a projection, as an adapter is."""

    def __init__(self, projection):
        super().__init__()
        self.projection = projection

    def forward(self, x):
        return 2 * self.projection(x)


def put_around(mlp):
    mlp.Wi = Doubled(mlp.Wi)


def hook(mlp):
    mlp.Wi.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def patch(mlp):
    mlp.Wi.forward = Doubled(copy.deepcopy(mlp.Wi)).forward


@pytest.mark.parametrize("settings", [{}, WITH_BIASES], ids=["no biases", "biases"])
@pytest.mark.parametrize("change", [put_around, hook, patch])
def test_inference_goes_through_what_others_put_around_a_projection(make_model, change, settings):
    model, batch = make_model("sdpa", **settings), pad_rows(documents(50, 20))
    for layer in model.layers:
        change(layer.mlp)
    with torch.no_grad():
        inference = model(**batch).last_hidden_state
    training = model(**batch).last_hidden_state
    assert (inference - training).abs().max() <= STATE_TOLERANCE


# --- a document comes out the same however it is presented --------------------------------------


PRESENTATIONS = {
    "left padded": lambda docs: pad_rows(docs, "left"),
    "right padded": lambda docs: pad_rows(docs, "right"),
    "right padded, with a boolean mask": lambda docs: (
        (batch := pad_rows(docs)) | {"attention_mask": batch["attention_mask"].bool()}
    ),
    "right padded, with one row of positions for all": lambda docs: (
        pad_rows(docs) | {"position_ids": torch.arange(200)[None]}
    ),
    "left padded, with the positions of generation": lambda docs: (
        (batch := pad_rows(docs, "left"))
        | {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    ),
    "packed in one row": lambda docs: pack_rows(docs, width=600),
    "packed in two rows": lambda docs: pack_rows(docs[:2], docs[2:]),
    "flattened": flatten,
    "flattened, lengths alone": lambda docs: {
        key: value for key, value in flatten(docs).items() if key != "position_ids"
    },
    "flattened, positions alone": lambda docs: {
        key: flatten(docs)[key] for key in ("input_ids", "position_ids")
    },
}


@backends
@pytest.mark.parametrize("presentation", PRESENTATIONS)
def test_same_states_as_alone(make_model, backend, presentation):
    model, docs = make_model(backend), documents(70, 200, 1, 131)
    states = states_of(model, PRESENTATIONS[presentation](docs))
    assert (states - states_alone(model, docs)).abs().max() <= STATE_TOLERANCE


@backends
def test_only_relative_positions_matter_but_order_does(make_model, backend):
    model = make_model(backend)
    (doc,) = documents(150)
    alone = states_of(model, {"input_ids": doc[None]})
    moved = {"input_ids": doc[None], "position_ids": torch.arange(150)[None] + 7}
    assert (states_of(model, moved) - alone).abs().max() <= STATE_TOLERANCE
    reversed_states = states_of(model, {"input_ids": doc.flip(0)[None]}).flip(0)
    assert (reversed_states - alone).abs().max() > 0.01


@backends
def test_the_amount_of_padding_moves_nothing(make_model, backend):
    model, docs = make_model(backend), documents(70, 200, 131)
    tight = states_of(model, pad_rows(docs))
    for side in ("left", "right"):
        for width in (201, 256, 333):
            wide = states_of(model, pad_rows(docs, side, width))
            assert (wide - tight).abs().max() <= STATE_TOLERANCE


@backends
@pytest.mark.parametrize("form", ["left", "right", "packed"])
def test_what_stands_at_padding_moves_nothing_at_all(make_model, backend, form):
    model, docs = make_model(backend), documents(70, 200, 131)
    batch = pack_rows(docs, width=450) if form == "packed" else pad_rows(docs, form)
    padding = ~real_tokens(batch)
    before = states_of(model, batch)
    other = batch["input_ids"].masked_fill(padding, 33)
    assert torch.equal(states_of(model, batch | {"input_ids": other}), before)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    with torch.no_grad():
        embeds[padding] = math.nan
        after = model(inputs_embeds=embeds, **rest).last_hidden_state
    assert torch.equal(after[~padding], before)
    assert (after[padding] == 0).all()


# --- what comes out ---------------------------------------------------------------------------


@backends
def test_hidden_states_are_the_embeddings_and_each_layer(make_model, backend):
    model, batch = make_model(backend), pad_rows(documents(20, 35))
    layers = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: layers.append(out))
        for layer in model.layers
    ]
    outputs = model(**batch, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert len(outputs.hidden_states) == 1 + model.config.num_hidden_layers
    assert all(states.shape == (2, 35, 32) for states in outputs.hidden_states)
    embedded = model.embeddings(batch["input_ids"])
    mask = real_tokens(batch)
    assert torch.equal(outputs.hidden_states[0][mask], embedded[mask])
    for states, layer in zip(outputs.hidden_states[1:-1], layers[:-1], strict=True):
        assert torch.equal(states[mask], layer)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    for states in outputs.hidden_states:
        assert (states[~mask] == 0).all()
    assert model(**batch).hidden_states is None


@pytest.mark.parametrize("form", ["left", "right", "packed", "flattened"])
def test_eager_attentions_are_dense_rows_that_sum_to_one(make_model, form):
    model, docs = make_model("eager", local_attention=16), documents(20, 35, 1)
    if form == "packed":
        batch = pack_rows(docs[:2], docs[2:], width=60)
        owner = torch.full((2, 60), -1)
        owner[0, :20], owner[0, 20:55], owner[1, :1] = 0, 1, 2
    elif form == "flattened":
        batch = flatten(docs)
        owner = torch.tensor([0] * 20 + [1] * 35 + [2])[None]
    else:
        batch = pad_rows(docs, form)
        owner = torch.where(real_tokens(batch), torch.arange(3)[:, None], -1)
    attentions = model(**batch, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    real = owner >= 0
    rows, width = owner.shape
    same_document = (owner[:, :, None] == owner[:, None, :]) & real[:, :, None]
    near = (torch.arange(width)[:, None] - torch.arange(width)).abs() <= 8
    for weights, layer_type in zip(attentions, model.config.layer_types, strict=True):
        assert weights.shape == (rows, 2, width, width)
        visible = same_document & near if layer_type == LOCAL else same_document
        positive = (weights > 0).all(dim=1)
        assert torch.equal(positive, visible)
        assert (weights.masked_select(~visible[:, None].expand_as(weights)) == 0).all()
        # A softmax in fp32 over at most 35 terms: each rounds to 6e-8.
        assert torch.allclose(weights.sum(-1), real[:, None].float(), atol=1e-6)


# --- precision and memory ---------------------------------------------------------------------


# bf16 keeps 8 bits, 0.4 % a rounding. Ten roundings a layer over three layers of states of size one
# come to 0.5 % on average, and to 3 % in the worst of 9,000 entries; allow twice and three times.
BF16_MEAN, BF16_WORST = 0.01, 0.1


def assert_near_fp32(states, reference):
    difference = (states.float() - reference).abs()
    assert states.isfinite().all()
    assert difference.mean() <= BF16_MEAN and difference.max() <= BF16_WORST


@backends
def test_bf16_is_finite_and_near_fp32(make_model, backend):
    model, batch = make_model(backend), pad_rows(documents(70, 200), "left")
    reference = states_of(model, batch)
    states = states_of(model.to(torch.bfloat16), batch)
    assert states.dtype == torch.bfloat16
    assert_near_fp32(states, reference)


@pytest.fixture
def every_warning():
    """torch gives most warnings once a process; a test that waits for one needs them each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@backends
# A norm whose weight is of another type than its input leaves the fused kernel, with this warning.
@pytest.mark.filterwarnings("error:Mismatch dtype between input and weight")
@pytest.mark.usefixtures("every_warning")
def test_autocast_is_near_fp32_and_trains(make_model, backend):
    model = make_model(backend, ChineseModernBertForMaskedLM)
    batch = masked_batch(70, 200, side="left")
    reference = model(**batch, output_hidden_states=True)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch, output_hidden_states=True)
    real = real_tokens(batch)
    assert_near_fp32(outputs.hidden_states[-1][real], reference.hidden_states[-1][real])
    # A mean over 80 tokens of errors of a few percent that do not agree in sign.
    assert outputs.loss.item() == pytest.approx(reference.loss.item(), rel=0.01)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@backends
def test_from_pretrained_in_bf16(make_model, backend, tmp_path):
    model, batch = make_model(backend), pad_rows(documents(70, 200), "left")
    model.save_pretrained(tmp_path)
    loaded = ChineseModernBertModel.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation=backend
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    states = states_of(loaded, batch)
    assert_near_fp32(states, states_of(model, batch))
    # RoPE has no state that loading could cast or lose: the same as casting in place.
    assert torch.equal(states, states_of(model.to(torch.bfloat16), batch))


# --- tied weights -----------------------------------------------------------------------------


def test_only_the_decoder_has_a_bias_and_it_is_tied_to_the_embeddings(make_model):
    model = make_model(cls=ChineseModernBertForMaskedLM)
    assert [n for n, _ in model.named_parameters() if n.endswith("bias")] == ["decoder.bias"]
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    assert model.get_output_embeddings() is model.decoder
    untied = make_model(cls=ChineseModernBertForMaskedLM, tie_word_embeddings=False)
    assert untied.decoder.weight is not untied.get_input_embeddings().weight


# --- the loss ---------------------------------------------------------------------------------

# Sums of a few hundred fp32 numbers of size one to ten, in another order: 1e-6 of the whole.
LOSS_TOLERANCE = 1e-5


def loss_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    outputs = model(**batch, **kwargs)
    outputs.loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters()}


@backends
@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_cross_entropy_over_masked_tokens(make_model, backend, training):
    model = make_model(backend, ChineseModernBertForMaskedLM)
    batch = masked_batch(40, 75, side="left")
    labels = batch["labels"]
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    log_probabilities = logits.log_softmax(-1)
    by_hand = -torch.stack(
        [
            log_probabilities[row, column, labels[row, column]]
            for row, column in (labels != -100).nonzero()
        ]
    ).mean()
    loss = model.train(training)(**batch).loss
    assert loss.item() == pytest.approx(by_hand.item(), rel=LOSS_TOLERANCE)


def test_training_forms_no_logits_and_evaluation_all_of_them(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM), masked_batch(40, 75)
    evaluated, gradients = loss_and_gradients(model, batch)
    assert evaluated.logits.shape == (2, 75, VOCAB)
    trained, train_gradients = loss_and_gradients(model.train(), batch)
    assert trained.logits is None
    assert trained.loss.item() == pytest.approx(evaluated.loss.item(), rel=LOSS_TOLERANCE)
    assert_same_gradients(train_gradients, gradients, LOSS_TOLERANCE)
    unlabeled = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert unlabeled.loss is None and unlabeled.logits.shape == (2, 75, VOCAB)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_half_batches_over_num_items_in_batch_sum_to_the_full_batch(make_model, training, kind):
    model = make_model(cls=ChineseModernBertForMaskedLM).train(training)
    full = masked_batch(40, 75, 12, 60)
    halves = [{key: value[rows] for key, value in full.items()} for rows in (slice(2), slice(2, 4))]
    masked = [(half["labels"] != -100).sum().item() for half in halves]
    assert masked[0] != masked[1]  # else the mean of the means would do as well
    outputs, gradients = loss_and_gradients(model, full)
    total, summed = 0.0, {name: torch.zeros_like(g) for name, g in gradients.items()}
    for half in halves:
        part, part_gradients = loss_and_gradients(model, half, num_items_in_batch=kind(sum(masked)))
        total += part.loss.item()
        summed = {name: summed[name] + part_gradients[name] for name in summed}
    assert total == pytest.approx(outputs.loss.item(), rel=LOSS_TOLERANCE)
    assert_same_gradients(summed, gradients, LOSS_TOLERANCE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_items_in_batch", [None, 0, 12])
def test_nothing_masked_is_a_loss_and_gradient_of_zero(make_model, training, num_items_in_batch):
    model = make_model(cls=ChineseModernBertForMaskedLM).train(training)
    batch = pad_rows(documents(20, 35))
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    outputs, gradients = loss_and_gradients(model, batch, num_items_in_batch=num_items_in_batch)
    assert outputs.loss.item() == 0
    # A gradient, and one of zeros: data-parallel training waits for every parameter's.
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_trainer_is_told_that_the_loss_is_normalized():
    assert ChineseModernBertForMaskedLM.accepts_loss_kwargs is True


# --- transformers' flattening collator --------------------------------------------------------


@backends
def test_the_flattening_collators_batch_goes_in_as_it_is(make_model, backend):
    model = make_model(backend, ChineseModernBertForMaskedLM)
    docs = documents(70, 1, 200, 65)
    # All it can give; sentence-transformers asks for the same.
    collate = DataCollatorWithFlattening(
        return_flash_attn_kwargs=True, return_position_ids=True, return_seq_idx=True
    )
    batch = collate([{"input_ids": doc.tolist(), "labels": doc.tolist()} for doc in docs])
    assert set(batch) == {
        "input_ids", "labels", "position_ids",
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx",
    }  # fmt: skip
    with torch.no_grad():
        outputs = model(**batch)
        alone = torch.cat([model(input_ids=doc[None]).logits[0] for doc in docs])
    assert outputs.logits.shape == (1, 336, VOCAB) and outputs.loss.isfinite()
    # Logits are sums of 32 products of size one: as exact as the states.
    assert (outputs.logits[0] - alone).abs().max() <= STATE_TOLERANCE


@pytest.mark.parametrize("training", [True, False])
def test_labels_of_another_shape_are_refused(make_model, training):
    model = make_model(cls=ChineseModernBertForMaskedLM).train(training)
    with pytest.raises(ValueError, match="labels"):
        model(input_ids=torch.full((1, 8), 7), labels=torch.full((1, 7), 7))


def test_a_replica_of_data_parallel_which_has_no_parameters_needs_none(make_model, monkeypatch):
    """torch gives it its weights as plain attributes; transformers' `device` fails there."""
    model = make_model("sdpa")
    expected = model(**pad_rows(documents(20, 9))).last_hidden_state
    for module in model.modules():
        weights = dict(module._parameters)
        module._parameters.clear()
        for name, weight in weights.items():
            object.__setattr__(module, name, weight)
    with pytest.raises(StopIteration):
        model.device  # noqa: B018
    assert torch.equal(model(**pad_rows(documents(20, 9))).last_hidden_state, expected)
