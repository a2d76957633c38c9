"""Our model with the weights of transformers' ModernBERT gives the outputs of their code."""

import pytest
import torch

from batches import VOCAB, documents, pad_rows, real_tokens
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel
from modernbert import HEADS, modernbert
from serving.modernbert_source import ARCHITECTURES, convert_config
from states import GRADIENT_TOLERANCE, assert_same_gradients, masked_batch

# Outputs have the size one to ten; fp32 carries 24 bits, and both codes add up the same numbers in
# another order.
TOLERANCE = 1e-5

# bf16 carries 8 bits, so each of some twenty roundings on the way moves an output by up to 0.4 % of
# its size, and the two codes round at different places.
BF16_TOLERANCE = 0.05

LENGTHS = (40, 1, 90, 7)  # the window is 64 to each side
GLOBAL, LOCAL = "full_attention", "sliding_attention"

CONFIGURATIONS = {
    "base": {
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_attention_heads": 12,
    },
    "all biases": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
    },
    "no bias of the decoder": {"decoder_bias": False},
    "another pattern, window and activation": {
        "layer_types": [LOCAL, GLOBAL, LOCAL],
        "local_attention": 17,
        "hidden_activation": "silu",
        "classifier_activation": "relu",
        "norm_eps": 1e-3,
        "rope_parameters": {GLOBAL: {"rope_theta": 500.0}, LOCAL: {"rope_theta": 70.0}},
    },
    "mmBERT": {"vocab_size": 256_000, "global_rope_theta": 160_000, "local_rope_theta": 160_000},
    "untied, mean pooling": {"tie_word_embeddings": False, "classifier_pooling": "mean"},
    "stretched context": {
        "max_position_embeddings": 256,
        "rope_parameters": {
            kind: {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
            for kind in (GLOBAL, LOCAL)
        },
    },
}


def converted(theirs):
    """Our model with the weights of theirs, every one of which is used."""
    config, _ = convert_config(theirs.config)
    ours = ARCHITECTURES[type(theirs).__name__](config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def outputs(model, batch):
    """The outputs, of the real tokens where there is one for each token."""
    if "MultipleChoice" in type(model).__name__:
        return model(**{name: tensor[None] for name, tensor in batch.items()}).logits
    given = model(**batch)
    if "start_logits" in given:
        return torch.stack((given.start_logits, given.end_logits), -1)[real_tokens(batch)]
    given = given[0]
    return given[real_tokens(batch)] if given.dim() == 3 else given


def presentations(theirs):
    """Side of the padding -> what ours reads, and what theirs reads for the same output."""
    vocab = theirs.config.vocab_size
    docs = [doc + vocab - VOCAB for doc in documents(*(LENGTHS if vocab == VOCAB else (9, 4)))]
    left, right = (pad_rows(docs, side) for side in ("left", "right"))
    # Their classifier takes position 0 for the first token even where position 0 is padding.
    by_place = (
        type(theirs).__name__ == "ModernBertForSequenceClassification"
        and theirs.config.classifier_pooling == "cls"
    )
    return {"left": (left, right if by_place else left), "right": (right, right)}


# These two differ from the others in the encoder and the decoder alone.
CASES = [
    (name, head)
    for name in CONFIGURATIONS
    for head in (HEADS if name not in ("base", "mmBERT") else ("ForMaskedLM",))
]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_every_head_gives_transformers_outputs(name, head):
    theirs = modernbert(head, **CONFIGURATIONS[name])
    ours = converted(theirs)
    for side, (batch, reference) in presentations(theirs).items():
        with torch.no_grad():
            expected, found = outputs(theirs, reference), outputs(ours, batch)
        assert found.shape == expected.shape
        assert expected.abs().max() > 0.3, side
        assert (found - expected).abs().max() <= TOLERANCE, side


@pytest.mark.parametrize("name", ["all biases", "another pattern, window and activation"])
def test_bf16_differs_by_its_rounding(name):
    theirs = modernbert("ForMaskedLM", **CONFIGURATIONS[name])
    ours = converted(theirs).bfloat16()
    batch = pad_rows(documents(*LENGTHS), "left")
    with torch.no_grad():
        expected = outputs(theirs, batch)
        found = outputs(ours, batch).float()
    assert (found - expected).abs().mean() <= BF16_TOLERANCE * expected.abs().mean()


@pytest.mark.parametrize("name", ["all biases", "no bias of the decoder", "untied, mean pooling"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_training_has_transformers_loss_and_gradients(name, autocast):
    theirs = modernbert("ForMaskedLM", **CONFIGURATIONS[name]).train()
    ours = converted(theirs).train()
    batch = masked_batch(40, 60)
    losses, gradients = [], []
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    tolerance = BF16_TOLERANCE if autocast else GRADIENT_TOLERANCE
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert_same_gradients(gradients[1], gradients[0], tolerance)


def test_an_unlike_norm_would_be_seen():
    """Names and shapes are the same under both norms, so nothing but the configuration tells."""
    theirs = modernbert("ForMaskedLM")
    config, _ = convert_config(theirs.config)
    config.norm_type = "rmsnorm"
    wrong = ChineseModernBertForMaskedLM(config).eval()
    wrong.load_state_dict(theirs.state_dict())
    batch = pad_rows(documents(*LENGTHS))
    with torch.no_grad():
        assert (outputs(wrong, batch) - outputs(theirs, batch)).abs().max() > 0.1


def test_a_new_model_begins_with_norms_of_one_and_biases_of_zero():
    config, _ = convert_config(modernbert("ForMaskedLM", **CONFIGURATIONS["all biases"]).config)
    model = ChineseModernBertForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name


def test_an_encoder_opens_from_a_checkpoint_with_a_head_and_all_its_biases(tmp_path):
    model = converted(modernbert("ForMaskedLM", **CONFIGURATIONS["all biases"]))
    model.save_pretrained(tmp_path)
    encoder, told = ChineseModernBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (told["missing_keys"], told["unexpected_keys"]) == (set(), set())
    reference = model.model.state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in encoder.state_dict().items())


def test_a_vocabulary_of_more_than_15_bits_can_be_fine_tuned():
    model = converted(modernbert("ForTokenClassification", vocab_size=256_000)).train()
    batch = {"input_ids": torch.tensor([[2, 255_999, 70_000, 3]])}
    before = model(**batch, labels=torch.tensor([[0, 1, 2, -100]])).loss
    before.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert model.get_input_embeddings().weight.grad[255_999].any()
    assert model(**batch, labels=torch.tensor([[0, 1, 2, -100]])).loss < before
