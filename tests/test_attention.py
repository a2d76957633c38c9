"""Attention backends: how one is chosen, what each is told, and that all give the same numbers.

The kernels that need CUDA are replaced by a stand-in that follows their documentation: cumulative
lengths, and a window of so many keys to the left and right, both ends included.
"""

import math
import types
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from transformers import AttentionInterface

import modeling_chinese_modernbert as modeling
from batches import documents, flatten, pack_rows, pad_rows
from modeling_chinese_modernbert import ATTENTION_BACKENDS, choose_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE = 1e-5
SHAPES = {
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
        monkeypatch.setattr(modeling, "is_flash_attn_2_available", lambda: flash_2)
        monkeypatch.setattr(modeling, "is_flash_attn_3_available", lambda: flash_3)

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
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"does not form attention weights.*'eager'"):
        model(**batch, output_attentions=True)


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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
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

    monkeypatch.setattr(modeling, "varlen_attn", stand_in_varlen_attn)
    monkeypatch.setattr(modeling, "lazy_import_flash_attention", load)
    batch = shape()
    states = model_of(name)(**batch).last_hidden_state
    expected = model_of("eager")(**batch).last_hidden_state
    assert (states - expected).abs().max() <= TOLERANCE
    assert set(loaded) == ({name} if name != "varlen_attention" else set())


# --- flex_attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("window", [None, 64, 5])
def test_block_masks_say_exactly_who_sees_whom(shape, window):
    batch = shape()
    stream = modeling.make_stream(
        batch["input_ids"].shape,
        CPU,
        batch.get("attention_mask"),
        batch.get("position_ids"),
        batch.get("cu_seq_lens_q"),
    )
    total, document = stream.bounds[-1], stream.document
    token = torch.arange(total)
    expected = document[:, None] == document[None, :]
    if window is not None:
        expected &= (token[:, None] - token[None, :]).abs() <= window
    stream.prepare("flex_attention", {window}, torch.float32, compiled=False)
    mask = stream.block_masks[window]
    visited = mask.to_dense()[0, 0].bool()
    visited = visited.repeat_interleave(128, 0).repeat_interleave(128, 1)[:total, :total]
    seen = visited & mask.mask_mod(0, 0, token[:, None], token[None, :])
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flex_attention_agrees_with_eager(model_of, any_device, monkeypatch, shape):
    # The kernel itself, uncompiled: the compiled one wants a card.
    monkeypatch.setattr(modeling, "compiled_flex_attention", lambda: torch_flex_attention)
    batch = shape()
    with torch.no_grad():
        states = model_of("flex_attention")(**batch).last_hidden_state
        expected = model_of("eager")(**batch).last_hidden_state
    assert (states - expected).abs().max() <= TOLERANCE


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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_registered_function_gives_the_same_states_and_weights(make_model, registered, shape):
    batch = shape()
    model = make_model("attention_of_the_tests")
    outputs = model(**batch, output_attentions=True)
    assert [call.sliding_window for call in registered] == [None, 64, 64]
    assert not any(call.is_causal for call in registered)
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True)
    assert (outputs.last_hidden_state - expected.last_hidden_state).abs().max() <= TOLERANCE
    for one, other in zip(outputs.attentions, expected.attentions, strict=True):
        assert (one - other).abs().max() <= TOLERANCE


def test_every_backend_is_documented():
    page = Path("docs/usage.md").read_text(encoding="utf-8")
    assert [name for name in ATTENTION_BACKENDS if f"`{name}`" not in page] == []


# --- plain products on a CPU ----------------------------------------------------------------------


@pytest.mark.parametrize("scores", [1, 300, 2**12, modeling.SCORES])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_give_what_torch_s_kernel_gives(monkeypatch, scores, masked):
    """However the scores are cut: queries of one head, heads of one entry, or several entries."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, n, 16, generator=generator) for n in (20, 30, 30))
    mask = None
    if masked:
        mask = torch.zeros(3, 1, 20, 30)
        mask[torch.rand(mask.shape, generator=generator) < 0.5] = -math.inf
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    monkeypatch.setattr(modeling, "SCORES", scores)
    monkeypatch.setattr(modeling, "products_beat_sdpa", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    with torch.no_grad():
        out = modeling.dot_product_attention(q, k, v, None if mask is None else mask.bfloat16())
    # bf16 keeps 8 bits, of scores up to 4 and of values up to 4.
    assert (out.float() - expected).abs().mean() <= 2**-8
    assert (out.float() - expected).abs().max() <= 2**-5


@pytest.mark.parametrize("dtype, grad", [(torch.float32, False), (torch.bfloat16, True)])
def test_plain_products_are_for_inference_in_bf16(monkeypatch, dtype, grad):
    called = []
    monkeypatch.setattr(modeling, "products_beat_sdpa", lambda: True)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: called.append(1)
    )
    q = torch.zeros(1, 2, 4, 8, dtype=dtype)
    with torch.set_grad_enabled(grad):
        modeling.dot_product_attention(q, q, q)
    assert called


@pytest.mark.parametrize(
    ("capabilities", "answer"),
    [
        ({"avx512_bf16": True, "amx_tile": False}, True),
        ({"avx512_bf16": True, "amx_tile": True}, False),
        ({"avx2": True}, False),
    ],
)
def test_plain_products_are_for_cpus_whose_bf16_torch_s_kernel_leaves_unused(
    monkeypatch, capabilities, answer
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert modeling.products_beat_sdpa.__wrapped__() is answer
