"""The encoder and its masked-language-modelling head.

What holds for every attention backend is tested on every backend, against the eager reference
and against a forward written out by hand. A document must come out the same however it is
presented: alone, padded on either side, packed into a row with others, or flattened.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import DataCollatorWithFlattening

import modeling_chinese_modernbert as modeling
from batches import PORTABLE_BACKENDS, VOCAB, documents, flatten, pack_rows, pad_rows, real_tokens
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertModel,
    make_stream,
    rotary_angles,
    rotate,
)

GLOBAL, LOCAL = "full_attention", "sliding_attention"

# fp32 carries 24 bits (6e-8) and the states have size one. Backends, and batches of another shape,
# add up the same numbers in another order: up to 1e-6 after three layers, and ten times that is
# far below what a wrong mask or position does (0.01 and more).
STATE_TOLERANCE = 1e-5

# The same, relative to the largest entry of each parameter's gradient: a gradient is a sum over
# all tokens, so its size and its rounding grow with the batch.
GRADIENT_TOLERANCE = 1e-5

backends = pytest.mark.parametrize("backend", PORTABLE_BACKENDS)


def masked_batch(*lengths, side="right", seed=1):
    """A padded batch with 30 % of its tokens masked, at least one in every row, and labels."""
    batch = pad_rows(documents(*lengths, seed=seed), side)
    chosen = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(seed))
    chosen[:, 0 if side == "right" else -1] = 0.0
    chosen = (chosen < 0.3) & real_tokens(batch)
    labels = batch["input_ids"].masked_fill(~chosen, -100)
    return batch | {"input_ids": batch["input_ids"].masked_fill(chosen, 4), "labels": labels}


def states_of(model, batch):
    """(total_tokens, hidden_size) of the real tokens, without a graph."""
    with torch.no_grad():
        return model(**batch).last_hidden_state[real_tokens(batch)]


def states_alone(model, docs):
    return torch.cat([states_of(model, {"input_ids": doc[None]}) for doc in docs])


def forward_and_gradients(model, batch):
    """States, and every parameter's gradient of a random projection of them."""
    model.zero_grad()
    states = model(**batch).last_hidden_state
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * probe).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(ours, reference, tolerance):
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        difference = (ours[name] - gradient).abs().max() / gradient.abs().max()
        assert difference <= tolerance, f"{name}: {difference:.1e}"


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


def test_rope_turns_each_pair_by_position_over_a_power_of_theta(tiny_config):
    torch.manual_seed(0)
    x, positions = torch.randn(6, 2, 16), torch.tensor([[0, 1, 2, 0, 5, 300]])
    stream = make_stream((1, 6), torch.device("cpu"), position_ids=positions)
    for layer_type, theta in ((GLOBAL, 80_000.0), (LOCAL, 10_000.0)):
        turned = rotate(x, *rotary_angles(tiny_config(), layer_type, stream))
        for token, position in enumerate(positions[0].tolist()):
            for pair in range(8):
                angle = position * theta ** (-2 * pair / 16)
                first, second = x[token, :, pair], x[token, :, pair + 8]
                expected = first * math.cos(angle) - second * math.sin(angle)
                # An angle of 300 is exact to 3e-5 in fp32, and the sine and cosine with it.
                assert (turned[token, :, pair] - expected).abs().max() <= 1e-4
                expected = second * math.cos(angle) + first * math.sin(angle)
                assert (turned[token, :, pair + 8] - expected).abs().max() <= 1e-4


# --- all backends agree with eager ------------------------------------------------------------

BORDERS = (64, 65, 66, 127, 128, 129, 130, 193)  # the window is 64 to each side, a block 128
SHAPES = {
    "padded left": lambda: pad_rows(documents(50, 200, 131), "left"),
    "padded right": lambda: pad_rows(documents(50, 200, 131), "right"),
    "mixed lengths, a full and an empty row": lambda: pad_rows(documents(300, 1, 7, 0, 299, 150)),
    "one length, no padding": lambda: pad_rows(documents(150, 150, 150)),
    "packed": lambda: pack_rows(documents(70, 1, 130, 65), documents(9, 200), width=280),
    "flattened": lambda: flatten(documents(70, 1, 130, 65, 200)),
    "borders of the window, padded": lambda: pad_rows(documents(*BORDERS)),
    "borders of the window, flattened": lambda: flatten(documents(*BORDERS)),
    "flattened, with an empty document": lambda: flatten(documents(70, 0, 130)),
    "documents of one token": lambda: flatten(documents(1, 1, 1, 1, 1)),
    "one token": lambda: pad_rows(documents(1)),
    "short documents only": lambda: pad_rows(documents(3, 20, 64)),
} | {f"alone, {n} tokens": lambda n=n: pad_rows(documents(n)) for n in BORDERS}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", sorted(set(PORTABLE_BACKENDS) - {"eager"}))
def test_backend_agrees_with_eager_forward_and_backward(make_model, backend, shape):
    batch, model = SHAPES[shape](), make_model("eager")
    states, gradients = forward_and_gradients(model, batch)
    model.set_attn_implementation(backend)
    other_states, other_gradients = forward_and_gradients(model, batch)
    assert (other_states - states).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(other_gradients, gradients, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("backend", sorted(set(PORTABLE_BACKENDS) - {"eager"}))
def test_backend_agrees_with_eager_on_a_document_of_8192_tokens(make_model, backend):
    # One head: eager holds 8,192 squared scores, 256 MB in fp32, several times over.
    shape = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 2}
    model = make_model("eager", layer_types=[LOCAL, GLOBAL], **shape)
    (doc,) = documents(8192)
    states, gradients = forward_and_gradients(model, {"input_ids": doc[None]})
    model.set_attn_implementation(backend)
    other_states, other_gradients = forward_and_gradients(model, {"input_ids": doc[None]})
    assert (other_states - states).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(other_gradients, gradients, GRADIENT_TOLERANCE)


# --- inference on a CPU, so many tokens at a time ---------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, "1,000 tokens"])
@backends
def test_inference_in_chunks_agrees_with_all_at_once(make_model, backend, shape, monkeypatch):
    monkeypatch.setattr(modeling, "TOKEN_CHUNK", 128)
    batch = SHAPES[shape]() if shape in SHAPES else pad_rows(documents(1000))
    model = make_model(backend)
    at_once = model(**batch, output_hidden_states=True).hidden_states
    layers = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _i, out: layers.append(out[0]))
    with torch.no_grad():
        chunked = model(**batch, output_hidden_states=True).hidden_states
    for ours, reference in zip(chunked, at_once, strict=True):
        assert (ours - reference).abs().max() <= STATE_TOLERANCE
    # What a hook was given is still what it was given, though inference overwrites what it can.
    for states, layer in zip(chunked[1:-1], layers[:-1], strict=True):
        assert torch.equal(states[real_tokens(batch)], layer)


def test_inference_in_chunks_works_under_autocast(make_model, monkeypatch):
    model, batch = make_model("sdpa"), pad_rows(documents(50, 200, 131), "left")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        at_once = model(**batch).last_hidden_state
        monkeypatch.setattr(modeling, "TOKEN_CHUNK", 128)
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


@pytest.mark.parametrize("change", [put_around, hook, patch])
def test_inference_goes_through_what_others_put_around_a_projection(make_model, change):
    model, batch = make_model("sdpa"), pad_rows(documents(50, 20))
    for layer in model.layers:
        change(layer.mlp)
    with torch.no_grad():
        inference = model(**batch).last_hidden_state
    training = model(**batch).last_hidden_state
    assert (inference - training).abs().max() <= STATE_TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_inference_in_bf16_agrees_whether_torch_s_kernel_or_plain_products_attend(
    make_model, shape, monkeypatch
):
    model, batch = make_model("sdpa").to(torch.bfloat16), SHAPES[shape]()
    states = {}
    for by_products in (False, True):
        monkeypatch.setattr(modeling, "products_beat_sdpa", lambda answer=by_products: answer)
        with torch.no_grad():
            states[by_products] = model(**batch).last_hidden_state.float()
    # bf16 keeps 8 bits, and states are of size one; seldom does a rounding add to another.
    difference = (states[True] - states[False]).abs()
    assert difference.mean() <= 2**-8
    assert difference.max() <= 2**-4


# --- the window -------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("window", [2, 128, 400])
def test_a_local_layer_sees_half_the_window_to_each_side_and_no_further(
    make_model, backend, window
):
    model = make_model(backend, num_hidden_layers=1, layer_types=[LOCAL], local_attention=window)
    # The first document moves the second off the borders of the blocks.
    docs, half = documents(37, 500), window // 2
    batch = flatten(docs)
    inputs = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    states = model(inputs_embeds=inputs, **batch).last_hidden_state[0, 37:]
    probe = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(2))
    position = torch.arange(500)
    for query in (0, 1, half, 63, 64, 65, 90, 91, 127, 128, 250, 499 - half, 499):
        (gradient,) = torch.autograd.grad(states[query] @ probe, inputs, retain_graph=True)
        seen = gradient[0, 37:].abs().amax(-1) > 0
        assert torch.equal(seen, (position - query).abs() <= half), f"query {query}"


@backends
@pytest.mark.parametrize("direction", [-1, 1])
def test_changing_a_token_64_away_is_felt_and_65_away_is_not(make_model, backend, direction):
    model = make_model(backend, num_hidden_layers=1, layer_types=[LOCAL])
    (doc,) = documents(300)
    before = states_of(model, {"input_ids": doc[None]})
    for token in (100, 127, 128, 191, 192):
        for distance, felt in ((64, True), (65, False)):
            changed = doc.clone()
            changed[token + direction * distance] = 4
            after = states_of(model, {"input_ids": changed[None]})
            assert torch.equal(after[token], before[token]) != felt, f"{token}, {distance}"


@backends
def test_a_global_layer_sees_the_whole_document(make_model, backend):
    model = make_model(backend, num_hidden_layers=1, layer_types=[GLOBAL])
    (doc,) = documents(300)
    before = states_of(model, {"input_ids": doc[None]})
    changed = doc.clone()
    changed[0] = 4
    after = states_of(model, {"input_ids": changed[None]})
    assert ((after != before).any(-1)).all()


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


# --- no document sees another -----------------------------------------------------------------

LEAK_LENGTHS = (70, 1, 130, 65, 200, 3)


def leak_batch(form, docs):
    """A batch, and for each real token the document it belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(docs)), torch.tensor([*map(len, docs)]))
    if form == "packed":
        return pack_rows(docs[:4], docs[4:], width=300), owner
    if form == "padded":
        return pad_rows(docs, "left"), owner
    return flatten(docs), owner


@backends
@pytest.mark.parametrize("form", ["packed", "flattened", "padded"])
@pytest.mark.parametrize("chunk", [128, modeling.TOKEN_CHUNK])
def test_changing_a_document_moves_no_other(make_model, backend, form, chunk, monkeypatch):
    monkeypatch.setattr(modeling, "TOKEN_CHUNK", chunk)
    model, docs = make_model(backend), documents(*LEAK_LENGTHS)
    batch, owner = leak_batch(form, docs)
    before = states_of(model, batch)
    for changed, new in enumerate(documents(*LEAK_LENGTHS, seed=9)):
        new = torch.where(new == docs[changed], (new - 4) % VOCAB, new)  # every token differs
        replaced = [*docs[:changed], new, *docs[changed + 1 :]]
        difference = (states_of(model, leak_batch(form, replaced)[0]) - before).abs().amax(-1)
        assert (difference[owner == changed] > 0).all()
        # Exactly nothing: the other documents run through the same operations on the same numbers.
        assert (difference[owner != changed] == 0).all(), f"document {changed} leaks"


@backends
@pytest.mark.parametrize("form", ["packed", "flattened", "padded"])
def test_no_gradient_reaches_another_document(make_model, backend, form):
    model = make_model(backend)
    batch, owner = leak_batch(form, documents(*LEAK_LENGTHS))
    real = real_tokens(batch)
    inputs = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    states = model(inputs_embeds=inputs, **batch).last_hidden_state[real]
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    for document in range(len(LEAK_LENGTHS)):
        own = owner == document
        (gradient,) = torch.autograd.grad(
            (states * probe)[own].sum(), inputs, retain_graph=True, materialize_grads=True
        )
        reached = gradient.abs().amax(-1)
        assert (reached[real][own] > 0).all()
        assert (reached[real][~own] == 0).all(), f"document {document} leaks"
        assert (reached[~real] == 0).all()


# --- what comes out ---------------------------------------------------------------------------


@backends
def test_hidden_states_are_the_embeddings_and_each_layer(make_model, backend):
    model, batch = make_model(backend), pad_rows(documents(20, 35))
    layers = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: layers.append(out[0]))
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


def test_sdpa_refuses_attentions_and_says_what_helps(make_model):
    model = make_model("sdpa")
    with pytest.raises(ValueError, match=r"set_attn_implementation\('eager'\)"):
        model(**pad_rows(documents(5)), output_attentions=True)


@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_return_dict_false_gives_a_tuple(make_model, cls, where):
    model, batch = make_model(cls=cls), pad_rows(documents(5, 9))
    expected = model(**batch)
    if where == "configuration":
        model.config.return_dict = False
        outputs = model(**batch)
    else:
        outputs = model(**batch, return_dict=False)
    assert isinstance(outputs, tuple) and len(outputs) == 1
    assert torch.equal(outputs[0], expected[0])


@backends
@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_inputs_embeds_equal_input_ids(make_model, backend, cls):
    model, batch = make_model(backend, cls), pad_rows(documents(70, 140))
    expected = model(**batch)[0]
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **batch)[0], expected)


# --- precision and memory ---------------------------------------------------------------------


@backends
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(make_model, backend):
    model, batch = make_model(backend).train(), pad_rows(documents(70, 200), "left")
    calls = []
    model.layers[0].attn.Wqkv.register_forward_hook(lambda *_: calls.append(1))
    states, gradients = forward_and_gradients(model, batch)
    assert len(calls) == 1
    model.gradient_checkpointing_enable()
    again, recomputed = forward_and_gradients(model, batch)
    assert len(calls) == 3  # once forward, once more on the way back
    assert torch.equal(again, states)
    # The same operations again; only the order of sums within a kernel is not promised.
    assert_same_gradients(recomputed, gradients, tolerance=1e-6)


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


@pytest.mark.parametrize("saved", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_save_and_load_give_the_same_states(make_model, saved, tmp_path):
    model, batch = make_model(cls=saved), pad_rows(documents(70, 200))
    model.save_pretrained(tmp_path)
    loaded = saved.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


# --- initialisation ---------------------------------------------------------------------------


def test_initialisation(make_model):
    # Wide enough that a standard deviation is known to 1 % (it is to 1 / sqrt(2 n), n >= 16,384).
    shape = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 400}
    model = make_model(
        cls=ChineseModernBertForMaskedLM, num_hidden_layers=4, initializer_range=0.02, **shape
    )
    # Cut off at two standard deviations, a normal keeps 0.880 of its own.
    truncated = 0.880
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if "norm" in name:
            assert (weight == 1).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 4) if name.endswith("Wo.weight") else 0.02
            assert weight.abs().max() <= 2 * std * (1 + 1e-6), name
            # Within 3 %, three times the sampling error above.
            assert weight.std().item() == pytest.approx(truncated * std, rel=0.03), name
            assert abs(weight.mean().item()) <= 0.05 * std, name
    for kind in ("Wqkv", "Wi", "attn.Wo", "mlp.Wo", "tok_embeddings", "head.dense", "norm", "bias"):
        assert any(kind in name for name in weights), f"no {kind}: the test looks at nothing"


def test_only_the_decoder_has_a_bias_and_it_is_tied_to_the_embeddings(make_model):
    model = make_model(cls=ChineseModernBertForMaskedLM)
    assert [n for n, _ in model.named_parameters() if n.endswith("bias")] == ["decoder.bias"]
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    assert model.get_output_embeddings() is model.decoder
    untied = make_model(cls=ChineseModernBertForMaskedLM, tie_word_embeddings=False)
    assert untied.decoder.weight is not untied.get_input_embeddings().weight


def test_tying_survives_saving_and_training(make_model, tmp_path):
    make_model(cls=ChineseModernBertForMaskedLM).save_pretrained(tmp_path)
    model = ChineseModernBertForMaskedLM.from_pretrained(tmp_path)
    assert model.decoder.weight is model.get_input_embeddings().weight


def test_resize_token_embeddings_keeps_tying_and_old_logits(make_model, tmp_path):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM), pad_rows(documents(20, 35))
    with torch.no_grad():
        model.decoder.bias.uniform_(-1, 1)
        before = model(**batch).logits
        model.resize_token_embeddings(VOCAB + 14)
        assert model.config.vocab_size == VOCAB + 14
        assert model.decoder.weight is model.get_input_embeddings().weight
        after = model(**batch).logits
    assert after.shape == (2, 35, VOCAB + 14)
    # A matrix product of another width adds up in another order.
    assert (after[..., :VOCAB] - before).abs().max() <= STATE_TOLERANCE
    model.save_pretrained(tmp_path)
    loaded = ChineseModernBertForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, after)


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
    unlabelled = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert unlabelled.loss is None and unlabelled.logits.shape == (2, 75, VOCAB)


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


def test_trainer_is_told_that_the_loss_is_normalised():
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


# --- input that does not fit ------------------------------------------------------------------

IDS = torch.full((1, 8), 7)
CU = torch.tensor([0, 3, 8], dtype=torch.int32)
MISFITS = {
    "neither ids nor embeddings": ({}, "exactly one of input_ids and inputs_embeds"),
    "ids and embeddings": (
        {"input_ids": IDS, "inputs_embeds": torch.zeros(1, 8, 32)},
        "exactly one of input_ids and inputs_embeds",
    ),
    "ids without a batch": ({"input_ids": IDS[0]}, "input_ids must be"),
    "embeddings without a batch": ({"inputs_embeds": torch.zeros(8, 32)}, "inputs_embeds must be"),
    "mask of another length": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 7)},
        r"attention_mask has shape \(1, 7\), expected \(1, 8\)",
    ),
    "mask of another batch": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 8)},
        r"attention_mask has shape \(2, 8\), expected \(1, 8\)",
    ),
    "four-dimensional mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 1, 8, 8)},
        "attention_mask has shape",
    ),
    "nothing but padding": (
        {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)},
        "no real token",
    ),
    "no tokens at all": ({"input_ids": IDS[:, :0]}, "no real token"),
    "positions of another length": (
        {"input_ids": IDS, "position_ids": torch.arange(5)[None]},
        r"position_ids has shape \(1, 5\)",
    ),
    "lengths of queries alone": ({"input_ids": IDS, "cu_seq_lens_q": CU}, "given together"),
    "lengths of keys alone": ({"input_ids": IDS, "cu_seq_lens_k": CU}, "given together"),
    "lengths of queries and keys differ": (
        {
            "input_ids": IDS,
            "cu_seq_lens_q": CU,
            "cu_seq_lens_k": torch.tensor([0, 4, 8], dtype=torch.int32),
        },
        "given together, and equal",
    ),
    "zeros in the mask beside lengths": (
        {
            "input_ids": IDS,
            "cu_seq_lens_q": CU,
            "cu_seq_lens_k": CU,
            "attention_mask": torch.tensor([[1] * 7 + [0]]),
        },
        "leave attention_mask out",
    ),
} | {
    f"lengths that {what}": (
        {"input_ids": ids, "cu_seq_lens_q": torch.tensor(cu), "cu_seq_lens_k": torch.tensor(cu)},
        "cu_seq_lens_q must rise from 0",
    )
    for what, ids, cu in (
        ("stop short", IDS, [0, 3, 7]),
        ("reach too far", IDS, [0, 3, 9]),
        ("start late", IDS, [1, 8]),
        ("fall", IDS, [0, 5, 3, 8]),
        ("belong to two rows", IDS.expand(2, 8), [0, 8, 16]),
        ("hold nothing", IDS, []),
    )
}


@pytest.mark.parametrize(("inputs", "message"), MISFITS.values(), ids=MISFITS)
def test_input_that_does_not_fit_is_refused(make_model, inputs, message):
    model = make_model(cls=ChineseModernBertForMaskedLM)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize("training", [True, False])
def test_labels_of_another_shape_are_refused(make_model, training):
    model = make_model(cls=ChineseModernBertForMaskedLM).train(training)
    with pytest.raises(ValueError, match="labels"):
        model(input_ids=IDS, labels=IDS[:, :7])
