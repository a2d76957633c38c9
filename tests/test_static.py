"""The static form of the forward: one graph for all batches gives what the stream gives."""

import pytest
import torch
from torch.export import Dim

import modeling_chinese_modernbert as modeling
from batches import documents, flatten, pack_rows, pad_rows, real_tokens
from states import STATE_TOLERANCE
from static_chinese_modernbert import make_blocks, make_local_mask, make_padded_stream

# One layer of each kind: all that a graph can get wrong.
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}

# Lengths of one token to several windows, batches of one to four, in which blocks of queries are
# full, begun, or one alone.
BATCHES = {
    f"{side}, {lengths}": pad_rows(documents(*lengths), side)
    for side in ("left", "right")
    for lengths in ((1,), (2, 1), (32,), (33, 20, 64), (65,), (300, 10, 129, 64))
}

HEADS = {
    "MaskedLM": {},
    "SequenceClassification": {"num_labels": 3},
    "SequenceClassification, first token": {"num_labels": 3, "classifier_pooling": "cls"},
    "TokenClassification": {"num_labels": 3},
    "QuestionAnswering": {},
    "MultipleChoice": {},
}


def graph_of(model, batch, strict=False):
    """What torch.export makes of a model, for any batch and length."""
    sizes = [Dim(name, min=1, max=8192) for name in ("batch", "choices", "sequence")]
    if batch["input_ids"].dim() == 2:
        sizes.pop(1)
    dynamic = {name: dict(enumerate(sizes)) for name in batch}
    with torch.no_grad():
        return torch.export.export(model, (), batch, dynamic_shapes=dynamic, strict=strict)


def largest_difference(one, other, real):
    """Between two outputs of a model, at real tokens where they have an entry for each token."""
    differences = []
    for name, expected in one.items():
        assert other[name].shape == expected.shape
        difference = (other[name] - expected).abs()
        if difference.shape[:2] == real.shape:
            difference = difference[real]
        differences.append(difference.max())
    return max(differences)


@pytest.fixture
def static_form(monkeypatch):
    """Returns `static_form(model, **batch)`: the static forward, run without a graph."""

    def run(model, **batch):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(modeling, "is_exporting", lambda: True)
            return model(**batch)

    return run


@pytest.mark.parametrize("head", HEADS)
def test_a_graph_of_each_head_gives_what_the_stream_gives(make_model, head):
    cls = getattr(modeling, f"ChineseModernBertFor{head.split(',')[0]}")
    model = make_model("eager", cls, **TWO_LAYERS, **HEADS[head])
    several = head == "MultipleChoice"
    example = pad_rows(documents(40, 70, 50, 60, 30, 20))
    if several:
        example = {name: x.view(2, 3, -1) for name, x in example.items()}
    graph = graph_of(model, example).module()
    for name, batch in BATCHES.items():
        real = real_tokens(batch)
        if several:
            batch = {key: x[None] for key, x in batch.items()}
        with torch.no_grad():
            difference = largest_difference(model(**batch), graph(**batch), real)
        assert difference <= STATE_TOLERANCE, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_texts_are_pooled_in_full_precision(dtype):
    rows = make_padded_stream(torch.ones(1, 4001, dtype=torch.long), None, None)
    states = torch.full((4001, 1), 30.0, dtype=dtype)  # together more than fp16 can hold
    assert rows.pool(states, "mean").tolist() == [[30.0]]


def test_dynamo_makes_the_same_graph_and_a_mask_is_not_needed(make_model):
    model = make_model("eager", **TWO_LAYERS)
    graph = graph_of(model, {"input_ids": torch.ones(2, 70, dtype=torch.long)}, strict=True)
    for doc in documents(1, 64, 200):
        with torch.no_grad():
            expected = model(input_ids=doc[None]).last_hidden_state
            given = graph.module()(input_ids=doc[None]).last_hidden_state
        assert (given - expected).abs().max() <= STATE_TOLERANCE


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_model_takes_every_batch(make_model):
    model = make_model("eager", modeling.ChineseModernBertForMaskedLM, **TWO_LAYERS)
    example = pad_rows(documents(40, 70))
    traced = torch.jit.trace(model, example_kwarg_inputs=example, strict=False)
    with torch.no_grad():
        for name, batch in BATCHES.items():
            given, expected = traced(**batch)["logits"], model(**batch).logits
            real = real_tokens(batch)
            assert (given - expected)[real].abs().max() <= STATE_TOLERANCE, name


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_are_those_of_the_stream(make_model, static_form, rope):
    rope_parameters = {
        "full_attention": {"rope_theta": 80_000.0} | rope,
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    model = make_model("eager", rope_parameters=rope_parameters, max_position_embeddings=100)
    for side in ("left", "right"):
        batch = pad_rows(documents(150, 40, 99), side)
        with torch.no_grad():
            difference = largest_difference(
                model(**batch), static_form(model, **batch), real_tokens(batch)
            )
        assert difference <= STATE_TOLERANCE


@pytest.mark.parametrize("window", [2, 30, 128, 600])
def test_local_layers_see_their_window(make_model, static_form, window):
    model = make_model("eager", local_attention=window)
    batch = pad_rows(documents(33, 260, 128), "left")
    with torch.no_grad():
        difference = largest_difference(
            model(**batch), static_form(model, **batch), real_tokens(batch)
        )
    assert difference <= STATE_TOLERANCE


def test_packed_documents_do_not_see_each_other(make_model, static_form):
    model = make_model("eager")
    batch = pack_rows(documents(70, 1, 130, 65), documents(9, 200), width=280)
    with torch.no_grad():
        difference = largest_difference(
            model(**batch), static_form(model, **batch), real_tokens(batch)
        )
    assert difference <= STATE_TOLERANCE


def test_embeddings_and_hidden_states_are_those_of_the_stream(make_model, static_form):
    model = make_model("eager")
    batch = pad_rows(documents(40, 99), "left")
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        given = static_form(model, **embedded, output_hidden_states=True)
    real = real_tokens(batch)
    for one, other in zip(expected.hidden_states, given.hidden_states, strict=True):
        assert (one - other)[real].abs().max() <= STATE_TOLERANCE


def test_a_row_without_a_token_spoils_nothing(make_model, static_form):
    batch = pad_rows(documents(40, 0, 99))
    states = static_form(make_model("eager"), **batch).last_hidden_state
    assert states.isfinite().all()


def test_local_attention_costs_as_much_as_the_input_is_long():
    def pairs(length):
        stream = make_padded_stream(torch.ones(1, length, dtype=torch.long), None, None)
        blocks = make_blocks(length, 64, torch.device("cpu"))
        return make_local_mask(stream, blocks, 64, torch.float32).numel()

    assert pairs(8192) == 8 * pairs(1024)


def test_padding_is_no_answer(make_model, static_form):
    model = make_model("eager", modeling.ChineseModernBertForQuestionAnswering)
    batch = pad_rows(documents(40, 99), "left")
    outputs = static_form(model, **batch)
    lowest = torch.finfo(torch.float32).min
    assert (outputs.start_logits[~real_tokens(batch)] == lowest).all()
    assert (outputs.end_logits[real_tokens(batch)] > lowest).all()


def test_each_matrix_stays_one_weight_of_the_graph(make_model):
    """The eager forward takes the halves of `Wi` apart, which quantizers would not recognize."""
    model = make_model("eager", **TWO_LAYERS)
    graph = graph_of(model, pad_rows(documents(40, 70))).graph
    users = {
        node.name: {user.target for user in node.users}
        for node in graph.nodes
        if node.op == "placeholder" and node.name.endswith(("wi_weight", "wqkv_weight"))
    }
    assert len(users) == 4
    assert all(targets == {torch.ops.aten.linear.default} for targets in users.values())


# --- what a graph does not take -----------------------------------------------------------------


def test_labels_are_refused(make_model, monkeypatch):
    model = make_model("eager", modeling.ChineseModernBertForMaskedLM, **TWO_LAYERS)
    batch = pad_rows(documents(40, 70))
    with pytest.raises(Exception, match="computes no loss: leave labels out"):
        graph_of(model, batch | {"labels": batch["input_ids"]})


@pytest.mark.parametrize(
    "batch",
    [
        flatten(documents(40, 70)),
        pad_rows(documents(40)) | {"output_attentions": True},
        pad_rows(documents(40)) | {"token_type_ids": torch.zeros(1, 40, dtype=torch.long)},
    ],
    ids=["cu_seq_lens", "output_attentions", "token_type_ids"],
)
def test_what_would_depend_on_the_data_is_refused(make_model, static_form, batch):
    with pytest.raises(ValueError, match="an exported graph does not take"):
        static_form(make_model("eager"), **batch)


def test_packed_rows_are_not_classified(make_model, static_form):
    model = make_model("eager", modeling.ChineseModernBertForSequenceClassification)
    with pytest.raises(ValueError, match="classifies rows, not the documents in them"):
        static_form(model, **pack_rows(documents(40, 30), documents(20)))
