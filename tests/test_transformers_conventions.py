"""What users of transformers take for granted in any model, over the encoder and all its heads.

transformers checks its own models by a suite of common tests (`ModelTesterMixin`), which its
package does not contain; these are the same promises in our own words. Left out, because they do
not apply or are proven elsewhere:
- generation, caches, cross-attention, encoder-decoders, images and sound: this is an encoder;
- head pruning, feed-forward chunking, `torchscript`: transformers 5 has dropped them;
- modules that return attention weights when called: `attn` is not called as a module here;
- equality of `sdpa`, `eager` and the flash kernels, static masks and torch.compile: test_attention,
  test_compile and, on a GPU, test_gpu;
- problem types and their losses: test_heads; loading by the Auto classes: test_remote_code;
- offloading to disk: accelerate does that without the model's help.
"""

import copy
import itertools
import logging
import math

import pytest
import torch
from transformers import AttentionInterface, Trainer, TrainingArguments

from batches import VOCAB, documents, flatten, pack_rows, pad_rows, real_tokens, stream_of
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForMultipleChoice,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertModel,
)
from states import STATE_TOLERANCE, assert_same_gradients

HEADS = (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForMultipleChoice,
)
CHOICES = ChineseModernBertForMultipleChoice
TOKEN_HEADS = (ChineseModernBertForMaskedLM, ChineseModernBertForTokenClassification)

every_model = pytest.mark.parametrize("cls", (ChineseModernBertModel, *HEADS))
every_head = pytest.mark.parametrize("cls", HEADS)

FORMS = {
    "padded left": lambda: pad_rows(documents(20, 70, 9, 33), "left"),
    "padded right": lambda: pad_rows(documents(20, 70, 9, 33), "right"),
    "no padding": lambda: pad_rows(documents(12, 12, 12, 12)),
    "packed": lambda: pack_rows(documents(20, 1, 9), documents(33, 7), width=60),
    "flattened": lambda: flatten(documents(20, 1, 70, 9)),
}
every_model_and_form = pytest.mark.parametrize(
    ("cls", "form"),
    [
        (cls, form)
        for cls in (ChineseModernBertModel, *HEADS)
        for form in FORMS
        if cls is not CHOICES or form not in ("packed", "flattened")  # a choice is a row
    ],
)


def inputs_for(cls, batch):
    """The batch as the class takes it: choices are pairs of rows."""
    if cls is not CHOICES:
        return dict(batch)
    return {name: value.unflatten(0, (-1, 2)) for name, value in batch.items()}


def labels_for(cls, batch):
    """Labels for `batch`, by the names of the class's arguments."""
    ids, rows = batch["input_ids"], len(batch["input_ids"])
    documents_of = (
        int((batch["position_ids"] == 0)[real_tokens(batch)].sum())
        if ("position_ids" in batch)
        else rows
    )
    if cls in TOKEN_HEADS:
        counted = real_tokens(batch) & (torch.arange(ids.shape[1]) % 3 == 0)
        return {"labels": (ids % 3).masked_fill(~counted, -100)}
    if cls is ChineseModernBertForQuestionAnswering:
        first = real_tokens(batch).long().argmax(1)
        return {"start_positions": first, "end_positions": first}
    if cls is CHOICES:
        return {"labels": torch.arange(rows // 2) % 2}
    if cls is ChineseModernBertForSequenceClassification:
        return {"labels": torch.arange(documents_of) % 3}
    return {}


def loss_of(outputs):
    """The model's loss, or for the bare encoder a fixed projection of its states."""
    if outputs.get("loss") is not None:
        return outputs.loss
    states = outputs.last_hidden_state
    return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()


def gradients_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def build(make_model):
    """Returns `build(cls, backend, **config)`: a model of three labels in eval mode."""
    return lambda cls, backend="sdpa", **config: make_model(
        backend, cls, **({"num_labels": 3} | config)
    )


# --- outputs ----------------------------------------------------------------------------------


@every_model
def test_the_first_arguments_are_the_usual_ones(build, cls):
    model, batch = build(cls), inputs_for(cls, FORMS["padded left"]())
    positional = model(batch["input_ids"], batch["attention_mask"])[0]
    assert torch.equal(positional, model(**batch)[0])


@every_model
@pytest.mark.parametrize("where", ["arguments", "configuration"])
def test_hidden_states_and_attentions_have_the_usual_shapes(build, cls, where):
    batch = pad_rows(documents(20, 8, 3, 12))
    model, options = build(cls, "eager"), {}
    if where == "configuration":
        model.config.output_hidden_states = model.config.output_attentions = True
    else:
        options = {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**inputs_for(cls, batch), **options)
    assert [tuple(x.shape) for x in outputs.hidden_states] == [(4, 20, 32)] * 4
    assert [tuple(x.shape) for x in outputs.attentions] == [(4, 2, 20, 20)] * 3
    if cls is ChineseModernBertModel:
        assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    plain = build(cls, "eager")(**inputs_for(cls, batch))
    assert "hidden_states" not in plain and "attentions" not in plain
    assert (plain[0] - outputs[0]).abs().max() <= STATE_TOLERANCE


@every_model
@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_return_dict_false_gives_the_same_in_tuples(build, cls, where):
    batch = pad_rows(documents(5, 9, 7, 3))
    model, options = build(cls, "eager"), {"output_hidden_states": True, "output_attentions": True}
    inputs = inputs_for(cls, batch) | labels_for(cls, batch) | options
    expected = model(**inputs)
    if where == "configuration":
        model.config.return_dict = False
        given = model(**inputs)
    else:
        given = model(**inputs, return_dict=False)
    assert type(given) is tuple and len(given) == len(expected.to_tuple())
    for one, other in zip(given, expected.to_tuple(), strict=True):
        assert type(one) is type(other)
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        assert all(torch.equal(*pair) for pair in pairs)


@every_model
def test_two_calls_give_the_same(build, cls):
    model, batch = build(cls), inputs_for(cls, FORMS["padded right"]())
    assert torch.equal(model(**batch)[0], model(**batch)[0])


@every_model
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_inputs_embeds_equal_input_ids(build, cls, backend):
    model, batch = build(cls, backend), inputs_for(cls, pad_rows(documents(70, 140, 9, 30)))
    expected = model(**batch)[0]
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **batch)[0], expected)


@every_model
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [2, 4])
def test_one_token_is_a_sequence(build, cls, training, rows):
    batch = pad_rows(documents(*[1] * rows))
    model = build(cls).train(training)
    outputs = model(**inputs_for(cls, batch), **labels_for(cls, batch), output_attentions=True)
    assert [tuple(x.shape) for x in outputs.attentions] == [(rows, 2, 1, 1)] * 3
    assert all((weights == 1).all() for weights in outputs.attentions)
    loss_of(outputs).backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


# --- what callers of BERT pass ----------------------------------------------------------------


@every_model
@pytest.mark.parametrize("dtype", [None, torch.long, torch.int32, torch.bool])
def test_no_segments_and_no_head_mask_change_nothing(build, cls, dtype):
    model, batch = build(cls), inputs_for(cls, FORMS["padded left"]())
    segments = None if dtype is None else torch.zeros_like(batch["input_ids"], dtype=dtype)
    given = model(**batch, token_type_ids=segments, head_mask=None)[0]
    assert torch.equal(given, model(**batch)[0])


@every_model
def test_segments_and_head_masks_are_refused(build, cls):
    model, batch = build(cls), inputs_for(cls, FORMS["padded left"]())
    for places in ((..., -1), (0,), (...,)):
        segments = torch.zeros_like(batch["input_ids"])
        segments[places] = 1
        with pytest.raises(ValueError, match=r"no segment embeddings.*Leave token_type_ids out"):
            model(**batch, token_type_ids=segments)
    with pytest.raises(ValueError, match="head_mask is not supported"):
        model(**batch, head_mask=torch.ones(3, 2))


# --- gradients of what is returned ------------------------------------------------------------


def reference_gradients(model, inputs):
    """The loss's gradients for what comes out of the embeddings, of each layer, and of the norm.

    Each is that of zeros which a hook adds to it: nothing is asked of the model but its loss.
    """
    zeros, handles = [], []

    def add(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        zeros.append(torch.zeros_like(x, requires_grad=True))
        x = x + zeros[-1]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    encoder = model.base_model
    for module in (encoder.embeddings, *encoder.layers[:-1], encoder.final_norm):
        handles.append(module.register_forward_hook(add))
    loss_of(model(**inputs)).backward()
    for handle in handles:
        handle.remove()
    return [x.grad for x in zeros]


@every_model_and_form
@pytest.mark.parametrize("mode", ["evaluation", "training", "checkpointing"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_returned_hidden_states_get_their_gradients(build, cls, form, mode):
    batch = FORMS[form]()
    inputs = inputs_for(cls, batch) | labels_for(cls, batch)
    model = build(cls).train(mode != "evaluation")
    expected = reference_gradients(model, inputs)
    weights = gradients_of(model)
    model.zero_grad()
    if mode == "checkpointing":
        model.gradient_checkpointing_enable()
    outputs = model(**inputs, output_hidden_states=True)
    for states in outputs.hidden_states:
        states.retain_grad()
    loss_of(outputs).backward()
    stream, padding = stream_of(batch), ~real_tokens(batch)
    expected[0] = stream.unpad(expected[0])  # a hook on the embeddings sees the batch
    for states, gradient in zip(outputs.hidden_states, expected, strict=True):
        # The same operations in the same order, and copies between them.
        assert torch.equal(stream.unpad(states.grad), gradient) and gradient.abs().max() > 0
        if states is not outputs.get("last_hidden_state"):  # of which the loss sees the padding
            assert (states.grad[padding] == 0).all()
    assert_same_gradients(gradients_of(model), weights, 1e-6)


@pytest.fixture
def shifted_weights():
    """An attention function that adds zeros to its weights, and the zeros of each call."""
    zeros = []

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        scores = query @ key.mT * scaling
        weights = scores.masked_fill(~attention_mask, -math.inf).softmax(-1)
        zeros.append(torch.zeros_like(weights, requires_grad=True))
        return ((weights + zeros[-1]) @ value).transpose(1, 2), weights

    AttentionInterface.register("shifted_weights", attention)
    yield zeros
    AttentionInterface._global_mapping.pop("shifted_weights")


@every_model_and_form
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_returned_attentions_get_their_gradients(build, cls, form, backend, shifted_weights):
    batch = FORMS[form]()
    inputs = inputs_for(cls, batch) | labels_for(cls, batch)
    model = build(cls, "shifted_weights")
    loss_of(model(**inputs)).backward()
    model.set_attn_implementation(backend)
    if backend == "sdpa":
        model.train().gradient_checkpointing_enable()
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    for weights in outputs.attentions:
        weights.retain_grad()
    loss_of(outputs).backward()
    stream = stream_of(batch)
    rows = torch.arange(stream.batch_shape[0]).repeat_interleave(stream.batch_shape[1])
    columns = torch.arange(stream.batch_shape[1]).repeat(stream.batch_shape[0])
    rows, columns = (stream.unpad(x.view(stream.batch_shape)) for x in (rows, columns))
    for weights, zeros in zip(outputs.attentions, shifted_weights, strict=True):
        expected = torch.zeros_like(weights)
        for document, (start, end) in enumerate(itertools.pairwise(stream.bounds)):
            place, length = columns[start:end], end - start
            expected[rows[start]][:, place[:, None], place] = zeros.grad[
                document, :, :length, :length
            ]
        visible = expected != 0  # what a mask hides has a gradient as well, but no effect
        assert visible.any()
        difference = (weights.grad - expected)[visible].abs().max()
        # A gradient is a sum of 16 products, added up in another order.
        assert difference <= 1e-5 * max(1, expected.abs().max())


def test_a_registered_function_s_weights_get_gradients_too(build, shifted_weights):
    model = build(ChineseModernBertModel, "shifted_weights")
    outputs = model(**FORMS["packed"](), output_attentions=True)
    for weights in outputs.attentions:
        weights.retain_grad()
    loss_of(outputs).backward()
    for weights, zeros in zip(outputs.attentions, shifted_weights, strict=True):
        assert torch.equal(weights.grad, zeros.grad) and weights.grad.abs().max() > 0


# --- hooks ------------------------------------------------------------------------------------


@every_model_and_form
def test_a_hook_on_the_input_embeddings_sees_the_batch_and_changes_nothing(build, cls, form):
    batch, model = FORMS[form](), build(cls)
    inputs, seen = inputs_for(cls, batch), []
    expected = model(**inputs)[0]
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    assert torch.equal(model(**inputs)[0], expected)
    with torch.no_grad():
        assert (model(**inputs)[0] - expected).abs().max() <= STATE_TOLERANCE
    handle.remove()
    assert seen == [(*batch["input_ids"].shape, 32)] * 2
    model.enable_input_require_grads()  # a hook as well, which adapters need for checkpointing
    assert torch.equal(model(**inputs)[0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_integrated_gradients_add_up_to_the_difference_of_the_outputs(build, side):
    """As attribution libraries do it: a hook replaces the embeddings by a line of mixtures."""
    steps = 200
    model = build(ChineseModernBertForSequenceClassification)
    batch = pad_rows(documents(9, 14), side)
    embedding, found = model.get_input_embeddings(), {}

    def score(batch, replacement=None):
        def replace(_module, _inputs, output):
            found["output"] = output
            return replacement

        handle = embedding.register_forward_hook(replace)
        logits = model(**batch).logits[:, 0]
        handle.remove()
        return logits

    with torch.no_grad():
        there = score(batch)
        end = found["output"]
        start = embedding.weight[4].expand_as(end)
        here = score(batch, start)
    share = (torch.arange(steps) + 0.5) / steps
    mixtures = start + share[:, None, None, None] * (end - start)
    mixtures = mixtures.detach().flatten(0, 1).requires_grad_()
    repeated = {name: value.repeat(steps, 1) for name, value in batch.items()}
    (gradient,) = torch.autograd.grad(score(repeated, mixtures).sum(), mixtures)
    attribution = (gradient.view(steps, *end.shape).mean(0) * (end - start)).sum(-1)
    assert (attribution[~real_tokens(batch)] == 0).all()
    # The sum over 200 midpoints is not the integral: a hundredth of the scores of about one.
    assert (attribution.sum(1) - (there - here)).abs().max() <= 0.01
    assert (there - here).abs().min() > 0.05


def test_a_backward_hook_on_the_input_embeddings_sees_the_batch(build):
    model, batch, seen = build(ChineseModernBertModel), FORMS["padded left"](), []
    model.get_input_embeddings().register_full_backward_hook(
        lambda _module, _inputs, outputs: seen.append(outputs[0])
    )
    loss_of(model(**batch)).backward()
    (gradient,) = seen
    assert gradient.shape == (4, 70, 32)
    assert torch.equal(gradient.abs().amax(-1) > 0, real_tokens(batch))


def train_with_noise(model, cls, form, alpha, folder, checkpointing):
    """Losses of three steps of Trainer on batches of 4 documents."""

    def collate(rows):
        docs = documents(*(row["length"] for row in rows), seed=rows[0]["length"])
        batch = pad_rows(docs, "left") if form == "padded" else pack_rows(docs[:2], docs[2:])
        return batch | labels_for(cls, batch)

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        neftune_noise_alpha=alpha,
        gradient_checkpointing=checkpointing,
        remove_unused_columns=False,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"length": length} for length in range(9, 21)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history[:3]]


@pytest.mark.parametrize(
    ("cls", "form", "checkpointing"),
    [
        (ChineseModernBertForMaskedLM, "padded", False),
        (ChineseModernBertForMaskedLM, "packed", True),
        (ChineseModernBertForSequenceClassification, "packed", False),
        (ChineseModernBertForTokenClassification, "padded", True),
    ],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_neftune_trains_with_noise_of_the_right_size(build, tmp_path, cls, form, checkpointing):
    model, clean, noisy = build(cls), [], []
    # This hook comes before Trainer's, and the norm after both.
    table = model.get_input_embeddings()
    table.register_forward_hook(lambda _module, _inputs, output: clean.append(output.detach()))
    model.model.embeddings.norm.register_forward_pre_hook(
        lambda _module, inputs: noisy.append(inputs[0].detach())
    )
    losses = train_with_noise(model, cls, form, 5.0, tmp_path, checkpointing)
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert len(clean) == len(noisy) == 3
    for before, after in zip(clean, noisy, strict=True):
        # The paper's size: alpha over the root of a row's tokens times the embedding's width.
        rows, tokens, width = after.shape
        assert (rows, width) == (4 if form == "padded" else 2, 32)
        noise, size = (after - before).abs(), 5.0 / math.sqrt(tokens * width)
        assert noise.max() <= size * (1 + 1e-5)
        # Uniform over more than a thousand entries: half the size on average, within a tenth.
        assert noise.mean().item() == pytest.approx(size / 2, rel=0.1)
    clean.clear(), noisy.clear()
    model.eval()(**pad_rows(documents(9, 20)))
    assert torch.equal(clean[0], noisy[0])


# --- weights ----------------------------------------------------------------------------------


@every_model
def test_saving_and_loading_gives_the_same(build, cls, tmp_path):
    model, batch = build(cls), inputs_for(cls, FORMS["padded right"]())
    model.save_pretrained(tmp_path)
    loaded, told = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert not loaded.training and torch.equal(loaded(**batch)[0], model(**batch)[0])
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.fixture
def load_report():
    """What transformers has logged while loading."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # another test's command may have set a higher one
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


@every_head
def test_the_encoder_opens_any_head_s_weights_without_a_word(build, cls, tmp_path, load_report):
    model, batch = build(cls), FORMS["padded right"]()
    model.save_pretrained(tmp_path)
    load_report.clear()
    encoder = ChineseModernBertModel.from_pretrained(tmp_path)
    assert load_report == []
    assert torch.equal(encoder(**batch)[0], model.model(**batch)[0])


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda w: w | {"model.layers.7.mlp.Wo.weight": torch.ones(2)}, "layers.7.mlp.Wo.weight"),
        (lambda w: w | {"model.layers.0.attn_norm.weight": torch.ones(32)}, "attn_norm.weight"),
        (lambda w: w | {"decoder.scale": torch.ones(1)}, "decoder.scale"),
        (lambda w: w | {"head.dense.bias": torch.ones(32)}, "head.dense.bias"),
        (lambda w: {k: v for k, v in w.items() if "final_norm" not in k}, "final_norm.weight"),
    ],
)
@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_weights_that_do_not_fit_are_still_reported(
    build, cls, tmp_path, load_report, change, reported
):
    model = build(ChineseModernBertForMaskedLM)
    model.save_pretrained(tmp_path, state_dict=change(model.state_dict()))
    load_report.clear()
    cls.from_pretrained(tmp_path)
    assert reported in "".join(load_report)


@every_head
def test_a_head_on_the_encoder_s_weights_is_new_and_reported(build, cls, tmp_path, load_report):
    encoder = build(ChineseModernBertModel)
    encoder.save_pretrained(tmp_path)
    load_report.clear()
    model, told = cls.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    own = {name for name, _ in model.named_parameters() if not name.startswith("model.")}
    assert told["missing_keys"] == own and not told["unexpected_keys"]
    assert "head.dense.weight" in "".join(load_report)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight)


@pytest.mark.parametrize("cls", [HEADS[1], HEADS[2]])
def test_a_classifier_of_another_size_is_refused_unless_told(build, cls, tmp_path):
    build(cls).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        cls.from_pretrained(tmp_path, num_labels=7)
    model = cls.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (7, 32)


@every_model
def test_initialization(build, cls):
    # Wide enough that a standard deviation is known to 1 % (it is to 1 / sqrt(2 n), n >= 16,384).
    shape = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 400}
    model = build(cls, num_hidden_layers=4, initializer_range=0.02, **shape)
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
            assert 0 < weight.abs().max() <= 2 * std * (1 + 1e-6), name
            if weight.numel() < 16_384:  # a classifier of a few rows
                continue
            # Within 3 %, three times the sampling error above.
            assert weight.std().item() == pytest.approx(truncated * std, rel=0.03), name
            assert abs(weight.mean().item()) <= 0.05 * std, name
    kinds = ["Wqkv", "Wi", "attn.Wo", "mlp.Wo", "tok_embeddings", "norm"]
    if cls is not ChineseModernBertModel:
        kinds += ["head.dense", "bias"]
    for kind in kinds:
        assert any(kind in name for name in weights), f"no {kind}: the test looks at nothing"


@every_model
def test_resized_embeddings_keep_what_was_learned(build, cls, tmp_path):
    model, batch = build(cls), inputs_for(cls, FORMS["padded left"]())
    before = model(**batch)[0]
    old = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(VOCAB + 14)
    assert model.config.vocab_size == VOCAB + 14
    assert model.get_input_embeddings().weight.shape == (VOCAB + 14, 32)
    assert torch.equal(model.get_input_embeddings().weight[:VOCAB], old)
    after = model(**batch)[0]
    # A matrix product of another width adds up in another order.
    assert (after[..., : before.shape[-1]] - before).abs().max() <= STATE_TOLERANCE
    if cls is ChineseModernBertForMaskedLM:
        assert after.shape[-1] == VOCAB + 14
        assert model.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert torch.equal(cls.from_pretrained(tmp_path)(**batch)[0], after)


@every_model
def test_input_embeddings_can_be_replaced(build, cls):
    model, batch = build(cls), inputs_for(cls, FORMS["padded left"]())
    before = model(**batch)[0]
    other = copy.deepcopy(model.get_input_embeddings())
    torch.nn.init.normal_(other.weight)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert (model(**batch)[0] - before).abs().max() > 0.01


# --- training ---------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(build, cls, backend, reentrant):
    batch = FORMS["padded left"]()
    inputs, model, calls = inputs_for(cls, batch) | labels_for(cls, batch), build(cls, backend), []
    model.base_model.layers[0].attn.Wqkv.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    loss = loss_of(model(**inputs))
    loss.backward()
    gradients = gradients_of(model)
    assert len(calls) == 1
    if reentrant is None:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.zero_grad()
    again = loss_of(model(**inputs))
    again.backward()
    assert len(calls) == 3  # once forward, and once more in the backward pass
    # The same operations again, but for the paths of inference, on which the first pass of
    # reentrant checkpointing runs. The order of sums within a kernel is not promised.
    tolerance = 1e-5 if reentrant else 1e-6
    assert torch.equal(again, loss) or reentrant
    assert abs(again - loss) <= tolerance * max(1, abs(loss))
    recomputed = gradients_of(model)
    if cls in (CHOICES, ChineseModernBertForQuestionAnswering):
        for one in (gradients, recomputed):  # a softmax over places: a constant changes nothing
            assert one.pop("classifier.bias").abs().max() <= 1e-6
    assert_same_gradients(recomputed, gradients, tolerance)
    model.gradient_checkpointing_disable()
    loss_of(model(**inputs))
    assert len(calls) == 4


@every_head
def test_every_weight_is_trained(build, cls):
    batch = FORMS["padded left"]()
    model = build(cls).train()
    loss_of(model(**inputs_for(cls, batch), **labels_for(cls, batch))).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@every_head
def test_a_batch_can_be_learned_by_heart(build, cls):
    batch = FORMS["padded left" if cls is CHOICES else "packed"]()
    inputs, model = inputs_for(cls, batch) | labels_for(cls, batch), build(cls).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
