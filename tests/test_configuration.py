"""The configuration: its defaults are the paper's model, and what contradicts itself is refused."""

import json

import pytest
import torch

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def test_default_is_the_papers_377_million_parameter_model():
    with torch.device("meta"):
        model = ChineseModernBertForMaskedLM(ChineseModernBertConfig())
    # parameters() gives the tied decoder once. Both ranges cover the rounding of the paper's
    # figures: 377 M in all, about 9 % of them embeddings.
    total = sum(parameter.numel() for parameter in model.parameters())
    assert 376_500_000 <= total <= 377_500_000
    embeddings = model.get_input_embeddings().weight.numel()
    assert 0.085 <= embeddings / total <= 0.091


def test_every_third_layer_is_global_counted_from_the_first():
    layer_types = ChineseModernBertConfig().layer_types
    assert len(layer_types) == 28
    assert [layer for layer, kind in enumerate(layer_types) if kind == GLOBAL] == list(
        range(0, 28, 3)
    )
    assert set(layer_types) == {GLOBAL, LOCAL}


def test_rope_turns_with_base_80000_globally_and_10000_locally():
    rope = ChineseModernBertConfig().rope_parameters
    assert rope == {
        GLOBAL: {"rope_type": "default", "rope_theta": 80_000.0},
        LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
    }


# --- accepted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_n", "expected"),
    [
        (1, [GLOBAL] * 4),
        (2, [GLOBAL, LOCAL, GLOBAL, LOCAL]),
        (4, [GLOBAL, LOCAL, LOCAL, LOCAL]),
    ],
)
def test_global_attn_every_n_layers_spells_out_the_layers(tiny_config, every_n, expected):
    config = tiny_config(num_hidden_layers=4, global_attn_every_n_layers=every_n)
    assert config.layer_types == expected


def test_layer_types_may_be_given_freely_or_beside_an_n_that_agrees(tiny_config):
    assert tiny_config(layer_types=[LOCAL, LOCAL, GLOBAL]).layer_types == [LOCAL, LOCAL, GLOBAL]
    both = tiny_config(layer_types=[GLOBAL, LOCAL, GLOBAL], global_attn_every_n_layers=2)
    assert both.layer_types == [GLOBAL, LOCAL, GLOBAL]


def test_thetas_are_accepted_as_keys_of_their_own(tiny_config):
    rope = tiny_config(global_rope_theta=160_000.0).rope_parameters
    assert (rope[GLOBAL]["rope_theta"], rope[LOCAL]["rope_theta"]) == (160_000.0, 10_000.0)
    rope = tiny_config(local_rope_theta=500.0).rope_parameters
    assert (rope[GLOBAL]["rope_theta"], rope[LOCAL]["rope_theta"]) == (80_000.0, 500.0)


def test_rope_parameters_fill_the_layer_type_that_is_left_out(tiny_config):
    rope = tiny_config(rope_parameters={LOCAL: {"rope_theta": 500.0}}).rope_parameters
    assert (rope[GLOBAL]["rope_theta"], rope[LOCAL]["rope_theta"]) == (80_000.0, 500.0)


def test_the_callers_rope_parameters_are_not_written_to(tiny_config):
    given = {LOCAL: {"rope_theta": 500.0}}
    tiny_config(rope_parameters=given)
    assert given == {LOCAL: {"rope_theta": 500.0}}


def test_special_token_ids_may_be_absent(tiny_config):
    assert tiny_config(mask_token_id=None).mask_token_id is None


# --- refused, with a message that names the key -----------------------------------------------


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("hiden_size", "hidden_size"),
        ("global_attn_every_n_layer", "global_attn_every_n_layers"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("global_rope_thetas", "global_rope_theta"),
    ],
)
def test_a_misspelt_key_is_refused_and_the_right_one_suggested(tiny_config, misspelt, meant):
    with pytest.raises(ValueError, match=f"'{misspelt}'.*Did you mean '{meant}'"):
        tiny_config(**{misspelt: 2})


def test_an_unknown_key_like_no_other_is_refused_without_a_guess(tiny_config):
    with pytest.raises(ValueError, match="unknown key 'zzz'") as refusal:
        tiny_config(zzz=1)
    assert "Did you mean" not in str(refusal.value)


def test_an_unknown_key_in_a_saved_file_is_refused_too(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"local_atention": 64}))
    with pytest.raises(ValueError, match=r"'local_atention'.*Did you mean 'local_attention'"):
        ChineseModernBertConfig.from_pretrained(tmp_path)


REFUSED = {
    "odd head size": ({"hidden_size": 30, "num_attention_heads": 2}, "hidden_size.*odd head size"),
    "hidden not a multiple of heads": ({"num_attention_heads": 5}, "num_attention_heads 5"),
    "odd window": ({"local_attention": 127}, "local_attention 127 must be even"),
    "no window": ({"local_attention": 0}, "local_attention must be a whole number"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
    "boolean as a number": ({"vocab_size": True}, "vocab_size must be a whole number"),
    "dropout of one": ({"mlp_dropout": 1.0}, "mlp_dropout must lie in"),
    "negative dropout": ({"attention_dropout": -0.1}, "attention_dropout must lie in"),
    "layer_types too short": ({"layer_types": [GLOBAL, LOCAL]}, "layer_types has 2 entries"),
    "unknown layer type": ({"layer_types": [GLOBAL, LOCAL, "chunked"]}, "layer_types.*chunked"),
    "layer_types against n": (
        {"layer_types": [GLOBAL, LOCAL, LOCAL], "global_attn_every_n_layers": 2},
        "layer_types contradicts global_attn_every_n_layers 2",
    ),
    "global every 0 layers": ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    "two global thetas": (
        {"rope_parameters": {GLOBAL: {"rope_theta": 1e4}}, "global_rope_theta": 8e4},
        "rope_parameters.*full_attention.*rope_theta 10000.*80000",
    ),
    "two local thetas": (
        {"rope_parameters": {LOCAL: {"rope_theta": 1e4}}, "local_rope_theta": 5e3},
        "rope_parameters.*sliding_attention.*rope_theta 10000.*5000",
    ),
    "unsupported rope_type": (
        {"rope_parameters": {GLOBAL: {"rope_type": "llama3", "factor": 2.0}}},
        "full_attention.*rope_type 'llama3'; it can be default, linear, dynamic, yarn",
    ),
    "scaling without a factor": (
        {"rope_parameters": {GLOBAL: {"rope_type": "linear"}}},
        "full_attention.*needs a factor of at least 1.*got None",
    ),
    "scaling that shrinks": (
        {"rope_parameters": {GLOBAL: {"rope_type": "dynamic", "factor": 0.5}}},
        "needs a factor of at least 1.*got 0.5",
    ),
    "yarn without the trained context": (
        {"rope_parameters": {GLOBAL: {"rope_type": "yarn", "factor": 4.0}}},
        "full_attention.*needs original_max_position_embeddings.*got None",
    ),
    "rope of an unknown layer type": (
        {"rope_parameters": {"chunked": {"rope_theta": 8e4}}},
        "rope_parameters.*chunked",
    ),
    "unknown key of a rope entry": (
        {"rope_parameters": {GLOBAL: {"rope_theta": 8e4, "factor": 2.0}}},
        "rope_parameters.*full_attention.*factor",
    ),
    "theta not positive": ({"global_rope_theta": 0.0}, "rope_theta.*must be positive"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused_by_name(tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize("outside", [50, -1])
@pytest.mark.parametrize("name", ["pad", "cls", "sep", "mask", "bos", "eos"])
def test_special_tokens_outside_the_vocabulary_are_refused(tiny_config, name, outside):
    with pytest.raises(ValueError, match=f"{name}_token_id {outside} lies outside the vocabulary"):
        tiny_config(**{f"{name}_token_id": outside})


# --- saved and loaded -------------------------------------------------------------------------


def test_round_trip_keeps_everything(tmp_path):
    # Every field differs from its default, so that none can be lost and found again by default.
    fields = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_activation": "silu",
        "max_position_embeddings": 512,
        "initializer_range": 0.03,
        "norm_eps": 1e-6,
        "local_attention": 32,
        "layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL],
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": 123.0},
            LOCAL: {"rope_type": "default", "rope_theta": 45.0},
        },
        "embedding_dropout": 0.1,
        "attention_dropout": 0.2,
        "mlp_dropout": 0.3,
        "pad_token_id": 10,
        "cls_token_id": 11,
        "sep_token_id": 12,
        "mask_token_id": 13,
        "bos_token_id": 14,
        "eos_token_id": 15,
        "tie_word_embeddings": False,
        "id2label": {0: "体育", 1: "财经", 2: "娱乐"},
        "label2id": {"体育": 0, "财经": 1, "娱乐": 2},
    }
    saved = ChineseModernBertConfig(**fields)
    saved.save_pretrained(tmp_path)
    loaded = ChineseModernBertConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert loaded.to_dict() == saved.to_dict()


def test_round_trip_keeps_what_was_derived(tiny_config, tmp_path):
    saved = tiny_config(global_attn_every_n_layers=2, global_rope_theta=160_000.0)
    saved.save_pretrained(tmp_path)
    loaded = ChineseModernBertConfig.from_pretrained(tmp_path)
    assert loaded.layer_types == [GLOBAL, LOCAL, GLOBAL]
    assert loaded.rope_parameters[GLOBAL]["rope_theta"] == 160_000.0
    assert loaded.to_dict() == saved.to_dict()
