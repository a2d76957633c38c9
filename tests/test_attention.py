"""Attention backends: how one is chosen, what each is told, and that all give the same numbers.

The kernels that need CUDA are replaced by a stand-in that follows their documentation: cumulative
lengths, and a window of so many keys to the left and right, both ends included.
"""

import math
import types

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from transformers import AttentionInterface

import attention_chinese_modernbert as attention
import backends_chinese_modernbert as backends_module
import modeling_chinese_modernbert as modeling
from attention_chinese_modernbert import ATTENTION_BACKENDS, make_plan
from backends_chinese_modernbert import choose_attention
from batches import (
    PORTABLE_BACKENDS,
    SHAPES,
    VOCAB,
    documents,
    flatten,
    pack_rows,
    pad_rows,
    real_tokens,
    stream_of,
)
from model_folders import ROOT
from states import (
    GRADIENT_TOLERANCE,
    STATE_TOLERANCE,
    assert_same_gradients,
    forward_and_gradients,
    states_of,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GLOBAL, LOCAL = "full_attention", "sliding_attention"

backends = pytest.mark.parametrize("backend", PORTABLE_BACKENDS)

# The forms of a batch, for the backends that are slow here.
FORMS = {
    "padded left": lambda: pad_rows(documents(50, 200, 131), "left"),
    "padded right": lambda: pad_rows(documents(64, 65, 1, 129), "right"),
    "packed": lambda: pack_rows(documents(70, 1, 130, 65), documents(9, 200), width=280),
    "flattened": lambda: flatten(documents(70, 1, 130, 65, 200)),
    "one block to the token": lambda: pad_rows(documents(128, 128)),
}


# --- choosing -------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """Returns `card(capability, flash_2, flash_3)`: a machine with such a card and packages."""

    def install(capability=(9, 0), flash_2=False, flash_3=False):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(backends_module, "is_flash_attn_2_available", lambda: flash_2)
        monkeypatch.setattr(backends_module, "is_flash_attn_3_available", lambda: flash_3)

    return install


def test_the_cpu_gets_sdpa():
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_attention("auto", CPU, dtype)[0] == "sdpa"


@pytest.mark.parametrize(
    ("packages", "backend", "reason"),
    [
        ({}, "varlen_attention", "flash-attn is not installed"),
        ({"flash_2": True}, "flash_attention_2", "flash-attn is installed"),
        ({"flash_2": True, "flash_3": True}, "flash_attention_3", "flash-attn 3 is installed"),
        ({"capability": (7, 5)}, "sdpa", "Ampere"),
    ],
)
def test_a_card_gets_the_fastest_there_is(card, packages, backend, reason):
    card(**packages)
    chosen, why = choose_attention("auto", CUDA, torch.bfloat16)
    assert chosen == backend and reason in why


def test_fp32_on_a_card_gets_sdpa_and_is_told_what_it_misses(card):
    card()
    chosen, why = choose_attention("auto", CUDA, torch.float32)
    assert chosen == "sdpa" and "dtype=torch.bfloat16" in why


@pytest.mark.parametrize("name", ["varlen_attention", "flash_attention_2", "flash_attention_3"])
def test_flash_kernels_are_refused_where_they_cannot_work(card, name):
    card()
    assert choose_attention(name, CUDA, torch.float16)[0] == name
    with pytest.raises(ValueError, match=r"needs a CUDA device.*on cpu.*'sdpa'"):
        choose_attention(name, CPU, torch.bfloat16)
    with pytest.raises(ValueError, match=r"takes bf16 or fp16, not torch.float32.*bfloat16"):
        choose_attention(name, CUDA, torch.float32)


def test_flex_attention_is_refused_on_the_cpu(card):
    card()
    assert choose_attention("flex_attention", CUDA, torch.float32)[0] == "flex_attention"
    with pytest.raises(ValueError, match=r"no backward on the CPU.*'sdpa'"):
        choose_attention("flex_attention", CPU, torch.float32)


def test_the_model_chooses_by_itself_and_can_be_told(make_model):
    model = make_model(None)
    assert model.attention_backend() == ("sdpa", "the fastest on cpu")
    batch = pad_rows(documents(30))
    model.set_attn_implementation("eager")
    assert model.attention_backend() == ("eager", "as asked for")
    assert model(**batch, output_attentions=True).attentions is not None


def test_autocast_counts(make_model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        modeling,
        "choose_attention",
        lambda *arguments: asked.append(arguments) or ("sdpa", "as asked for"),
    )
    model = make_model(None)
    model.attention_backend()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.attention_backend()
    assert [dtype for _, _, dtype in asked] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "no_such_backend",
            ValueError,
            "'no_such_backend' is not known; choose one of auto, eager",
        ),
        ("paged|eager", ValueError, "not known"),
        ("flash_attention_2", ImportError, "FlashAttention2.*installed"),
    ],
)
def test_what_is_not_there_is_refused_when_chosen(make_model, name, error, message):
    model = make_model("sdpa")
    with pytest.raises(error, match=message):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "sdpa"


# --- all backends agree with eager ------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", sorted(set(PORTABLE_BACKENDS) - {"eager"}))
def test_backend_agrees_with_eager_forward_and_backward(make_model, backend, shape):
    batch, model = SHAPES[shape](), make_model("eager")
    states, gradients = forward_and_gradients(model, batch)
    model.set_attn_implementation(backend)
    other_states, other_gradients = forward_and_gradients(model, batch)
    assert (other_states - states).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(other_gradients, gradients, GRADIENT_TOLERANCE)


ONE_LAYER = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}


@pytest.mark.parametrize("backend", sorted(set(PORTABLE_BACKENDS) - {"eager"}))
def test_a_global_layer_agrees_with_eager_on_a_document_of_8192_tokens(make_model, backend):
    # One head: eager holds 8,192 squared scores, 256 MB in fp32, several times over.
    model = make_model("eager", layer_types=[GLOBAL], **ONE_LAYER)
    (doc,) = documents(8192)
    states, gradients = forward_and_gradients(model, {"input_ids": doc[None]})
    model.set_attn_implementation(backend)
    other_states, other_gradients = forward_and_gradients(model, {"input_ids": doc[None]})
    assert (other_states - states).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(other_gradients, gradients, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("backend", sorted(set(PORTABLE_BACKENDS) - {"eager"}))
def test_a_local_layer_agrees_with_eager_on_a_document_of_8192_tokens(make_model, backend):
    model = make_model(backend, layer_types=[LOCAL], **ONE_LAYER)
    (doc,) = documents(8192)
    states = states_of(model, {"input_ids": doc[None]})
    model.set_attn_implementation("eager")
    for start in range(0, 8192, 1000):  # a piece and its neighborhood: nothing else is seen
        first = max(0, start - 64)
        piece = states_of(model, {"input_ids": doc[None, first : start + 1064]})
        piece = piece[start - first :][:1000]
        assert (states[start : start + 1000] - piece).abs().max() <= STATE_TOLERANCE


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
@pytest.mark.parametrize("chunk", [128, attention.TOKEN_CHUNK])
def test_changing_a_document_moves_no_other(make_model, backend, form, chunk, monkeypatch):
    monkeypatch.setattr(attention, "TOKEN_CHUNK", chunk)
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


# --- kernels for variable lengths -----------------------------------------------------------------


def reference_varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, window):
    """What the kernels' documentation says, in fp64, one document at a time."""
    assert torch.equal(cu_q, cu_k) and cu_q.dtype == torch.int32 and cu_q[-1] == len(q)
    assert longest_q == longest_k == int(cu_q.diff().max())
    assert q.shape == k.shape == v.shape and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    left, right = (math.inf if side == -1 else side for side in window)
    out = torch.empty_like(q, dtype=torch.float64)
    for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        one = [x[start:end].double().transpose(0, 1) for x in (q, k, v)]
        scores = one[0] @ one[1].mT * q.shape[-1] ** -0.5
        place = torch.arange(end - start)
        offset = place[None, :] - place[:, None]  # key - query
        scores = scores.masked_fill((offset < -left) | (offset > right), -math.inf)
        out[start:end] = (scores.softmax(-1) @ one[2]).transpose(0, 1)
    return out.to(q.dtype)


def stand_in_varlen_attn(q, k, v, cu_q, cu_k, longest_q, longest_k, *, window_size=(-1, -1)):
    return reference_varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, window_size)


def stand_in_flash_attn(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size=(-1, -1)
):
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return reference_varlen(q, k, v, *lengths, window_size), None  # flash-attn 3 gives a pair


@pytest.fixture
def any_device(monkeypatch):
    """Lets backends run where `choose_attention` would refuse them."""
    monkeypatch.setattr(modeling, "choose_attention", lambda name, *_: (name, "as asked for"))


@pytest.fixture
def model_of(make_model):
    """Returns `model_of(name)`: a model that takes this backend without its package."""

    def build(name):
        model = make_model("eager")
        model.config._attn_implementation_internal = name
        return model

    return build


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "name", ["varlen_attention", "flash_attention_2", "flash_attention_3", "a/flash-attn2"]
)
def test_varlen_kernels_are_told_the_documents_and_the_window(
    model_of, any_device, monkeypatch, name, shape
):
    loaded = []

    def load(implementation):
        loaded.append(implementation)
        return (None, stand_in_flash_attn, None, None, None), (None, None)

    monkeypatch.setattr(attention, "varlen_attn", stand_in_varlen_attn)
    monkeypatch.setattr(attention, "lazy_import_flash_attention", load)
    batch = shape()
    states = model_of(name)(**batch).last_hidden_state
    expected = model_of("eager")(**batch).last_hidden_state
    assert (states - expected).abs().max() <= STATE_TOLERANCE
    assert set(loaded) == ({name} if name != "varlen_attention" else set())


@pytest.mark.parametrize("name", ["varlen_attention", "flash_attention_2", "flex_attention"])
def test_kernels_that_take_the_stream_get_no_rows_in_a_compiled_graph_either(name):
    stream = stream_of(FORMS["packed"]())
    plan = make_plan(stream, {}, name, {None, 64}, torch.bfloat16, compiled=True)
    assert torch.is_grad_enabled() and plan.grid is None


# --- flex_attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("window", [None, 64, 5])
def test_block_masks_say_exactly_who_sees_whom(shape, window):
    batch = shape()
    stream = stream_of(batch)
    total, document = stream.bounds[-1], stream.document
    token = torch.arange(total)
    expected = document[:, None] == document[None, :]
    if window is not None:
        expected &= (token[:, None] - token[None, :]).abs() <= window
    mask = make_plan(stream, {}, "flex_attention", {window}, torch.float32).block_masks[window]
    visited = mask.to_dense()[0, 0].bool()
    visited = visited.repeat_interleave(128, 0).repeat_interleave(128, 1)[:total, :total]
    seen = visited & mask.mask_mod(0, 0, token[:, None], token[None, :])
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
def test_flex_attention_agrees_with_eager(model_of, any_device, monkeypatch, shape):
    # The kernel itself, uncompiled: the compiled one wants a card.
    monkeypatch.setattr(attention, "compiled_flex_attention", lambda: torch_flex_attention)
    batch = shape()
    with torch.no_grad():
        states = model_of("flex_attention")(**batch).last_hidden_state
        expected = model_of("eager")(**batch).last_hidden_state
    assert (states - expected).abs().max() <= STATE_TOLERANCE


# --- functions of one's own -------------------------------------------------------------------


@pytest.fixture
def registered():
    """A function registered with transformers, which notes what it was given."""
    calls = []

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        calls.append(types.SimpleNamespace(query=query, mask=attention_mask, **kwargs))
        scores = query @ key.mT * scaling
        weights = scores.masked_fill(~attention_mask, -math.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("attention_of_the_tests", attention)
    yield calls
    AttentionInterface._global_mapping.pop("attention_of_the_tests")


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
def test_a_registered_function_gives_the_same_states_and_weights(make_model, registered, shape):
    batch = shape()
    model = make_model("attention_of_the_tests")
    states = model(**batch).last_hidden_state
    assert [call.sliding_window for call in registered] == [None, 64, 64]
    assert not any(call.is_causal for call in registered)
    outputs = model(**batch, output_attentions=True)
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True)
    for given in (states, outputs.last_hidden_state):
        assert (given - expected.last_hidden_state).abs().max() <= STATE_TOLERANCE
    real = real_tokens(batch)
    for one, other in zip(outputs.attentions, expected.attentions, strict=True):
        one, other = (x.transpose(1, 2)[real] for x in (one, other))  # by query
        assert (one - other).abs().max() <= STATE_TOLERANCE


def test_a_registered_function_without_weights_says_so_when_they_are_asked_for(make_model):
    def silent(module, query, key, value, attention_mask, scaling, **kwargs):
        return value.transpose(1, 2), None

    AttentionInterface.register("silent_attention", silent)
    model, batch = make_model("silent_attention"), pad_rows(documents(9, 5))
    assert model(**batch).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=r"'silent_attention' returns no attention weights.*eager"):
        model(**batch, output_attentions=True)
    AttentionInterface._global_mapping.pop("silent_attention")


# --- attention weights ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "name", ["sdpa", "auto", "varlen_attention", "flash_attention_2", "a/flash-attn2"]
)
def test_weights_come_from_eager_where_a_backend_has_none(
    make_model, model_of, monkeypatch, name, shape
):
    batch, told = shape(), []
    expected = model_of("eager")(**batch, output_attentions=True)
    model = model_of(name)
    if name != "auto":
        monkeypatch.setattr(modeling, "choose_attention", lambda name, *_: (name, "as asked for"))
    monkeypatch.setattr(modeling.logger, "warning_once", told.append)
    outputs = model(**batch, output_attentions=True)
    assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
    for one, other in zip(outputs.attentions, expected.attentions, strict=True):
        assert torch.equal(one, other)
    chosen = "sdpa" if name == "auto" else name
    (warning,) = told
    assert f"{chosen!r} does not form attention weights" in warning
    assert model.config._attn_implementation == name


def test_one_call_with_weights_leaves_the_next_call_its_backend(make_model, monkeypatch):
    model, batch, called = make_model("sdpa"), pad_rows(documents(50, 20)), []
    sdpa = attention.ATTENTION_BACKENDS["sdpa"]
    monkeypatch.setitem(
        attention.ATTENTION_BACKENDS, "sdpa", lambda *a: called.append(1) or sdpa(*a)
    )
    model(**batch, output_attentions=True)
    assert called == []
    assert model(**batch).attentions is None and len(called) == 3


def test_weights_are_right_where_padding_lies_between_tokens(make_model):
    model, (doc,) = make_model("sdpa", local_attention=8), documents(30)
    mask = (torch.arange(60) % 2)[None]
    ids = torch.zeros(1, 60, dtype=torch.long).masked_scatter(mask.bool(), doc)
    spread = model(input_ids=ids, attention_mask=mask, output_attentions=True)
    alone = model(input_ids=doc[None], output_attentions=True)
    for one, other in zip(spread.attentions, alone.attentions, strict=True):
        assert (one[:, :, 1::2, 1::2] - other).abs().max() <= STATE_TOLERANCE
        assert (one[:, :, ::2] == 0).all() and (one[..., ::2] == 0).all()


def test_every_backend_is_documented():
    page = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    assert [name for name in ATTENTION_BACKENDS if f"`{name}`" not in page] == []
