"""Plain matrix products on a CPU: attention in inference and training, and the masked loss.

They are meant for bf16; that they compute the right thing is checked in fp32, where nothing but the
order of sums differs from the reference.
"""

import math

import pytest
import torch

import attention_chinese_modernbert as attention
import losses_chinese_modernbert as losses
import products_chinese_modernbert as products
from batches import SHAPES, VOCAB, documents, pack_rows, pad_rows, stream_of
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from states import (
    GRADIENT_TOLERANCE,
    STATE_TOLERANCE,
    assert_same_gradients,
    forward_and_gradients,
    masked_batch,
)

# --- training -------------------------------------------------------------------------------------

TRAINING_SHAPES = SHAPES | {
    "long beside short": lambda: pack_rows(documents(*[5] * 20), documents(300), documents(1, 2)),
    "all short": lambda: pad_rows(documents(3, 2, 40), "left"),
}


@pytest.fixture
def everywhere(monkeypatch):
    """Plain products whatever the type and the processor."""
    monkeypatch.setattr(attention, "trains_by_products", lambda x, dtype: True)
    monkeypatch.setattr(attention, "products_beat_sdpa", lambda: True)


@pytest.mark.parametrize("shape", TRAINING_SHAPES)
@pytest.mark.parametrize("kept", [0, products.KEPT_SCORES], ids=["computed again", "kept"])
def test_training_gives_the_reference_s_gradients(make_model, everywhere, monkeypatch, shape, kept):
    """Whether the backward has the probabilities or computes them again."""
    monkeypatch.setattr(products, "KEPT_SCORES", kept)
    batch = TRAINING_SHAPES[shape]()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    states, gradients = forward_and_gradients(make_model("sdpa"), batch)
    expected, reference = forward_and_gradients(make_model("eager"), batch)
    assert (states - expected).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(gradients, reference, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("shape", TRAINING_SHAPES)
def test_with_amx_long_documents_global_layers_train_by_torch_s_kernel(
    make_model, everywhere, monkeypatch, shape
):
    monkeypatch.setattr(attention, "products_beat_sdpa", lambda: False)
    kernel, called = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: called.append(1) or kernel(*args, **kwargs),
    )
    batch = TRAINING_SHAPES[shape]()
    states, gradients = forward_and_gradients(make_model("sdpa"), batch)
    assert bool(called) == (stream_of(batch).longest > attention.AMX_LONGEST)
    expected, reference = forward_and_gradients(make_model("eager"), batch)
    assert (states - expected).abs().max() <= STATE_TOLERANCE
    assert_same_gradients(gradients, reference, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("scores", [1, 300, 2**12])
def test_gradients_do_not_depend_on_how_the_scores_are_cut(monkeypatch, scores):
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(3, 4, n, 16, generator=generator) for n in (20, 30, 30, 20))
    mask = torch.zeros(3, 1, 20, 30)
    mask[torch.rand(mask.shape, generator=generator) < 0.5] = -math.inf
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    attended = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=1.0)
    expected = torch.autograd.grad(attended, inputs, grad)
    monkeypatch.setattr(products, "SCORES", scores)
    kept = torch.empty(3, 4, 20, 30)
    assert (products.products(q, k, v, mask, kept) - attended).abs().max() <= STATE_TOLERANCE
    for probabilities in (kept, None):
        found = products.products_backward(grad, q, k, v, mask, probabilities)
        for ours, reference in zip(found, expected, strict=True):
            assert (ours - reference).abs().max() <= STATE_TOLERANCE


@pytest.mark.parametrize("amx", [False, True])
def test_a_compiled_model_trains_by_them_on_every_batch(make_model, everywhere, monkeypatch, amx):
    """With AMX in its local layers."""
    monkeypatch.setattr(attention, "products_beat_sdpa", lambda: not amx)
    monkeypatch.setattr(attention, "_sdpa_blockwise", None)
    if not amx:
        monkeypatch.setattr(attention.Grid, "spread", None)  # the way to torch's kernel
    model = make_model("sdpa")
    compiled = torch.compile(model, backend="aot_eager")
    reference = make_model("eager")
    for batch in (pad_rows(documents(50, 200, 131)), pack_rows(documents(9, 70), documents(80))):
        states, gradients = forward_and_gradients(compiled, batch)
        expected, right = forward_and_gradients(reference, batch)
        assert (states - expected).abs().max() <= STATE_TOLERANCE
        named = {name.removeprefix("_orig_mod."): x for name, x in gradients.items()}
        assert_same_gradients(named, right, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("lengths", [[64], [5, 60, 65, 64, 1], [130, 10, 10, 120, 300, 2]])
def test_tiles_hold_every_document_whole_and_in_order(lengths):
    stream = stream_of(pad_rows(documents(*lengths)))
    grid = attention.grid_of_tiles(stream, smallest=1)
    tiles, width = grid.token.shape
    assert width % attention.TILE_WIDTH == 0 and 0 <= width - max(lengths) < attention.TILE_WIDTH
    places, start = grid.place.tolist(), 0
    for length in lengths:
        own = places[start : start + length]
        assert own == list(range(own[0], own[0] + length))
        assert own[0] // width == own[-1] // width
        start += length
    assert grid.token.flatten()[grid.place].tolist() == list(range(sum(lengths)))
    assert (grid.token == sum(lengths)).sum() == tiles * width - sum(lengths)
    assert tiles <= 1 + 2 * sum(lengths) // width


# --- the loss -------------------------------------------------------------------------------------


def loss_and_gradients(model, batch, **arguments):
    model.zero_grad()
    loss = model(**batch, **arguments).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("logits", [1, 150, products.LOGITS])
@pytest.mark.parametrize("items", [None, 7])
def test_the_masked_loss_is_cross_entropy_however_its_tokens_are_cut(
    make_model, monkeypatch, logits, items
):
    monkeypatch.setattr(products, "LOGITS", logits)
    model, batch = make_model(cls=ChineseModernBertForMaskedLM), masked_batch(40, 90, 3)
    expected, reference = loss_and_gradients(model, batch, num_items_in_batch=items)
    monkeypatch.setattr(losses, "token_loss", None)
    loss, gradients = loss_and_gradients(model.train(), batch, num_items_in_batch=items)
    assert (loss - expected).abs() <= STATE_TOLERANCE * expected
    assert_same_gradients(gradients, reference, GRADIENT_TOLERANCE)


def test_the_masked_loss_of_bf16_is_near_that_of_fp32(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40, 90, 3)
    expected, reference = loss_and_gradients(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = loss_and_gradients(model, batch)
    # bf16 keeps 8 bits; a gradient is a sum of some hundred numbers of either sign.
    assert (loss - expected).abs() <= 2**-7 * expected
    assert_same_gradients(gradients, reference, 2**-3)


def test_second_derivatives_of_the_masked_loss_are_those_of_the_logits(make_model):
    model, batch = make_model("eager", ChineseModernBertForMaskedLM), masked_batch(40, 90, 3)
    parameters = [model.decoder.weight, model.decoder.bias, model.model.layers[0].mlp.Wi.weight]

    def curvature() -> list[torch.Tensor]:
        gradients = torch.autograd.grad(model(**batch).loss, parameters, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), parameters)

    expected = curvature()
    model.train()
    for ours, theirs in zip(curvature(), expected, strict=True):
        assert (ours - theirs).norm() <= GRADIENT_TOLERANCE * theirs.norm()


@pytest.mark.parametrize("label", [-1, VOCAB])
def test_a_label_that_is_no_class_is_refused(make_model, label):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40)
    batch["labels"][0, 5] = label
    with pytest.raises(IndexError, match=f"classes are 0 to {VOCAB - 1}"):
        model(**batch)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2**-7), (torch.float64, 1e-6)])
def test_types_other_than_fp32_and_bf16_have_the_loss_of_the_logits(make_model, dtype, tolerance):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).to(dtype), masked_batch(40, 90, 3)
    loss = model.train()(**batch).loss
    with torch.no_grad():
        assert (model.eval()(**batch).loss - loss).abs() <= tolerance * loss


def test_a_decoder_with_something_around_it_is_called(make_model):
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40)
    expected, _ = loss_and_gradients(model, batch)
    model.decoder.register_forward_hook(lambda module, inputs, output: 0 * output)
    loss, _ = loss_and_gradients(model, batch)
    assert abs(loss - math.log(VOCAB)) <= STATE_TOLERANCE < abs(loss - expected)


# --- the last layer -------------------------------------------------------------------------------


def test_the_last_layer_computes_only_what_is_predicted(make_model):
    """The gradients are those of a model whose hook sees all tokens."""
    model, batch = make_model(cls=ChineseModernBertForMaskedLM).train(), masked_batch(40, 90, 3)
    seen = []
    model.model.layers[-1].mlp.register_forward_hook(lambda *_: seen.append(len(_[2])))
    loss, gradients = loss_and_gradients(model, batch)
    hook = model.model.layers[-1].register_forward_hook(lambda *_: None)
    expected, reference = loss_and_gradients(model, batch)
    hook.remove()
    assert seen == [(batch["labels"] != -100).sum(), 133]
    assert (loss - expected).abs() <= STATE_TOLERANCE
    assert_same_gradients(gradients, reference, GRADIENT_TOLERANCE)


# --- inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [1, 300, 2**12, products.SCORES])
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
    monkeypatch.setattr(products, "SCORES", scores)
    monkeypatch.setattr(products, "products_beat_sdpa", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    with torch.no_grad():
        out = attention.dot_product_attention(q, k, v, None if mask is None else mask.bfloat16())
    # bf16 keeps 8 bits, of scores up to 4 and of values up to 4.
    assert (out.float() - expected).abs().mean() <= 2**-8
    assert (out.float() - expected).abs().max() <= 2**-5


@pytest.mark.parametrize("shape", SHAPES)
def test_inference_in_bf16_agrees_whether_torch_s_kernel_or_plain_products_attend(
    make_model, shape, monkeypatch
):
    model, batch = make_model("sdpa").to(torch.bfloat16), SHAPES[shape]()
    states = {}
    for by_products in (False, True):
        monkeypatch.setattr(products, "products_beat_sdpa", lambda answer=by_products: answer)
        with torch.no_grad():
            states[by_products] = model(**batch).last_hidden_state.float()
    # bf16 keeps 8 bits, and states are of size one; seldom does a rounding add to another.
    difference = (states[True] - states[False]).abs()
    assert difference.mean() <= 2**-8
    assert difference.max() <= 2**-4


@pytest.mark.parametrize("dtype, grad", [(torch.float32, False), (torch.bfloat16, True)])
def test_plain_products_are_for_inference_in_bf16(monkeypatch, dtype, grad):
    called = []
    monkeypatch.setattr(products, "products_beat_sdpa", lambda: True)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: called.append(1)
    )
    q = torch.zeros(1, 2, 4, 8, dtype=dtype)
    with torch.set_grad_enabled(grad):
        attention.dot_product_attention(q, q, q)
    assert called


@pytest.mark.parametrize(
    ("capabilities", "inference", "training"),
    [
        ({"avx512_bf16": True, "amx_tile": False}, True, True),
        ({"avx512_bf16": True, "amx_tile": True}, False, True),
        ({"avx2": True}, False, False),
    ],
)
def test_plain_products_are_for_cpus_whose_bf16_torch_s_kernel_leaves_unused(
    monkeypatch, capabilities, inference, training
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for answer in (
        products.products_beat_sdpa,
        products.products_use_bf16,
    ):  # not from their caches
        monkeypatch.setattr(products, answer.__name__, answer.__wrapped__)
    x = torch.empty(0)
    assert products.by_products(x, torch.bfloat16) is inference
    assert products.trains_by_products(x, torch.bfloat16) is training
    assert not products.trains_by_products(x, torch.float32)
