"""Factorized embeddings: a narrow table and two projections do what their product would."""

import pytest
import torch

from batches import documents, pad_rows
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertModel,
)
from states import STATE_TOLERANCE, masked_batch

NARROW = 12


@pytest.fixture
def factorized(make_model):
    """Returns `factorized(cls)`: a model of embeddings narrower than its hidden states."""
    return lambda cls=ChineseModernBertForMaskedLM, **config: make_model(
        cls=cls, embedding_size=NARROW, **config
    )


def test_it_is_the_model_whose_table_is_the_product(factorized, make_model):
    model = factorized()
    wide = make_model(cls=ChineseModernBertForMaskedLM, tie_word_embeddings=False)
    weights = model.state_dict()
    table = weights["model.embeddings.tok_embeddings.weight"]
    inward = weights.pop("model.embeddings.projection.weight")
    outward = weights.pop("projection.weight")
    assert table.shape == weights["decoder.weight"].shape == (len(table), NARROW)
    weights["model.embeddings.tok_embeddings.weight"] = table @ inward.T
    weights["decoder.weight"] = table @ outward
    wide.load_state_dict(weights)
    batch = pad_rows(documents(70, 9, 33), "left")
    with torch.no_grad():
        difference = model(**batch).logits - wide(**batch).logits
    assert difference.abs().max() <= STATE_TOLERANCE


def test_models_without_them_have_no_weights_more(make_model):
    model = make_model(cls=ChineseModernBertForMaskedLM)
    assert not [name for name in model.state_dict() if "projection" in name]


def test_projections_keep_the_scale_of_what_they_project(factorized):
    model = factorized(hidden_size=256, initializer_range=0.02)
    table = model.model.embeddings.tok_embeddings.weight
    projected = model.model.embeddings.projection(table)
    # Both are drawn at random, from normal distributions cut at two standard deviations.
    assert 0.6 < projected.std() / table.std() < 1.2
    states = torch.randn(100, 256, generator=torch.Generator().manual_seed(1))
    assert 0.6 < model.projection(states).std() < 1.2


def test_training_loses_what_the_logits_say_and_reaches_every_weight(factorized):
    model, batch = factorized(), masked_batch(40, 25)
    loss = model(**batch).loss  # in eval mode, from logits
    model.train()
    trained = model(**batch).loss
    assert trained.item() == pytest.approx(loss.item(), abs=1e-5)
    trained.backward()
    assert [name for name, each in model.named_parameters() if not each.grad.any()] == []


def test_autocast_leaves_the_residual_stream_in_fp32(factorized):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = factorized()(**masked_batch(20), output_hidden_states=True)
    assert {state.dtype for state in outputs.hidden_states} == {torch.float32}


def test_embeddings_are_given_at_their_own_width(factorized):
    model, batch = factorized(ChineseModernBertModel), pad_rows(documents(30, 12))
    embedded = model.get_input_embeddings()(batch["input_ids"])
    assert embedded.shape[-1] == NARROW
    given = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"])
    expected = model(**batch).last_hidden_state
    assert (given.last_hidden_state - expected).abs().max() <= STATE_TOLERANCE
    in_bf16 = model.to(torch.bfloat16)(inputs_embeds=embedded)  # of fp32, as tuned prompts are
    assert in_bf16.last_hidden_state.dtype == torch.bfloat16


def test_a_checkpoint_opens_as_itself_as_an_encoder_and_for_fine_tuning(factorized, tmp_path):
    model, batch = factorized(), pad_rows(documents(30, 12))
    model.save_pretrained(tmp_path)
    opened = ChineseModernBertForMaskedLM.from_pretrained(tmp_path).eval()
    assert opened.decoder.weight is opened.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(opened(**batch).logits, model(**batch).logits)
        states = model.model(**batch).last_hidden_state
        for cls in (ChineseModernBertModel, ChineseModernBertForSequenceClassification):
            encoder, told = cls.from_pretrained(tmp_path, output_loading_info=True)
            assert torch.equal(encoder.base_model(**batch).last_hidden_state, states)
            assert {name.partition(".")[0] for name in told["missing_keys"]} <= {"classifier"}


def test_the_vocabulary_can_grow(factorized):
    model = factorized()
    model.resize_token_embeddings(64)
    assert model.decoder.weight.shape == (64, NARROW)
    assert model(**masked_batch(20)).logits.shape[-1] == 64
