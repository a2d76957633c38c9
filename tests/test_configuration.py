"""The configuration: its defaults are the paper's model, and contradictory values are refused."""

import json
from dataclasses import fields
from functools import partial

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    LlamaConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel

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


def test_rope_has_base_80000_globally_and_10000_locally():
    rope = ChineseModernBertConfig().rope_parameters
    assert rope == {
        GLOBAL: {"rope_type": "default", "rope_theta": 80_000.0},
        LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
    }


# --- accepted ---------------------------------------------------------------------------------


def test_values_given_to_from_pretrained_are_checked_and_completed(tiny_config, tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    opened = partial(type(config).from_pretrained, tmp_path)
    for wrong in ({"norm_type": "layer_norm"}, {"classifier_pooling": "max"}, {"hidden_size": 33}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            opened(**wrong)
    assert opened(num_hidden_layers=2).layer_types == config.layer_types[:2]
    with pytest.raises(ValueError, match="layer_types has 3 entries for num_hidden_layers 5"):
        opened(num_hidden_layers=5)
    assert opened(global_attn_every_n_layers=1).layer_types == ["full_attention"] * 3
    assert opened(classifier_dropout=0.5).classifier_dropout == 0.5


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


def test_layer_types_may_be_given_freely_or_with_an_n_that_agrees(tiny_config):
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


def test_the_callers_rope_parameters_are_not_changed(tiny_config):
    given = {LOCAL: {"rope_theta": 500.0}}
    tiny_config(rope_parameters=given)
    assert given == {LOCAL: {"rope_theta": 500.0}}


def test_special_token_ids_may_be_absent(tiny_config):
    assert tiny_config(mask_token_id=None).mask_token_id is None


# --- refused, with a message that names the key -----------------------------------------------


@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("hiden_size", "hidden_size"),
        ("global_attn_every_n_layer", "global_attn_every_n_layers"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("global_rope_thetas", "global_rope_theta"),
    ],
)
def test_a_misspelled_key_is_refused_and_the_right_one_suggested(tiny_config, misspelled, meant):
    with pytest.raises(ValueError, match=f"'{misspelled}'.*Did you mean '{meant}'"):
        tiny_config(**{misspelled: 2})


def test_an_unknown_key_like_no_other_is_refused_without_a_guess(tiny_config):
    with pytest.raises(ValueError, match="unknown key 'zzz'") as refusal:
        tiny_config(zzz=1)
    assert "Did you mean" not in str(refusal.value)


@pytest.mark.parametrize("key", ["sentence_transformers", "tokenizer_class", "max_length"])
def test_an_unknown_key_given_by_hand_is_refused(tiny_config, key):
    with pytest.raises(ValueError, match=f"unknown key '{key}'"):
        tiny_config(**{key: 1})


REFUSED = {
    "odd head size": ({"hidden_size": 30, "num_attention_heads": 2}, "hidden_size.*odd head size"),
    "hidden not a multiple of heads": ({"num_attention_heads": 5}, "num_attention_heads 5"),
    "odd window": ({"local_attention": 127}, "local_attention 127 must be even"),
    "no window": ({"local_attention": 0}, "local_attention must be a whole number"),
    "no embeddings": ({"embedding_size": 0}, "embedding_size must be a whole number"),
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
    "unknown norm": ({"norm_type": "batchnorm"}, "norm_type must be 'rmsnorm' or 'layernorm'"),
    "bias of an RMSNorm": ({"norm_bias": True}, "norm_bias needs norm_type 'layernorm'"),
    "no theta": ({"rope_parameters": {GLOBAL: {"rope_theta": None}}}, "must be positive, got None"),
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
        "embedding_size": 16,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_activation": "silu",
        "max_position_embeddings": 512,
        "initializer_range": 0.03,
        "norm_type": "layernorm",
        "norm_eps": 1e-6,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "local_attention": 32,
        "layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL],
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": 123.0},
            LOCAL: {"rope_type": "default", "rope_theta": 45.0},
        },
        "embedding_dropout": 0.1,
        "attention_dropout": 0.2,
        "mlp_dropout": 0.3,
        "classifier_pooling": "cls",
        "classifier_dropout": 0.4,
        "classifier_bias": True,
        "classifier_activation": "relu",
        "decoder_bias": False,
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


@pytest.mark.parametrize(
    ("written", "given", "layer_types", "theta"),
    [
        ({"global_rope_theta": 9e4}, {"global_rope_theta": 7e3}, [GLOBAL, LOCAL, LOCAL], 7e3),
        (
            {"global_rope_theta": 9e4},
            {"rope_parameters": {GLOBAL: {"rope_theta": 7e3}}},
            [GLOBAL, LOCAL, LOCAL],
            7e3,
        ),
        ({"global_rope_theta": None}, {"vocab_size": 400}, [GLOBAL, LOCAL, LOCAL], 8e4),
        (
            {"global_rope_theta": 9e4, "global_attn_every_n_layers": 2},
            {"layer_types": [GLOBAL, GLOBAL, LOCAL]},
            [GLOBAL, GLOBAL, LOCAL],
            9e4,
        ),
    ],
)
def test_what_is_given_wins_over_a_file_written_by_hand(
    tmp_path, written, given, layer_types, theta
):
    content = {"model_type": "chinese_modernbert", "num_hidden_layers": 3, **written}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = ChineseModernBertConfig.from_pretrained(tmp_path, **given)
    assert config.layer_types == layer_types
    assert config.rope_parameters[GLOBAL]["rope_theta"] == theta
    assert (
        config.rope_parameters[LOCAL]["rope_theta"]
        == ChineseModernBertConfig().rope_parameters[LOCAL]["rope_theta"]
    )


# --- keys that somebody else wrote into the file ----------------------------------------------

# Attributes that libraries and users set, and what transformers used to write into every file.
FOREIGN = {
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
    "my_note": "第一版",
    "is_decoder": False,
    "task_specific_params": {"分类": {"num_beams": 2}},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torchscript": True,
    "pruned_heads": {"0": [1]},
    "finetuning_task": "tnews",
    # Not far from names of ours, but other words.
    "vocab_file": "vocab.txt",
    "eot_token_id": 3,
    "num_heads": 2,
    "num_layers": 3,
    "type": "encoder",
    "add_cross_attention": False,
    "position_embedding_type": None,
    "unsloth_version": "2026.1",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_an_attribute_set_by_others_is_saved_and_read_again(tiny_config, tmp_path, caplog, key):
    config = tiny_config()
    setattr(config, key, FOREIGN[key])
    config.save_pretrained(tmp_path / "once")
    opened = ChineseModernBertConfig.from_pretrained(tmp_path / "once")
    assert getattr(opened, key) == FOREIGN[key]
    opened.save_pretrained(tmp_path / "twice")
    again = ChineseModernBertConfig.from_json_file(tmp_path / "twice" / "config.json")
    assert again.to_dict() == config.to_dict()
    warnings = [record.message for record in caplog.records if "unknown keys" in record.message]
    assert len(warnings) == 1 and repr(key) in warnings[0]


def test_a_model_with_foreign_attributes_opens_through_the_auto_classes(tiny_config, tmp_path):
    model = ChineseModernBertModel(tiny_config()).eval()
    for key, value in FOREIGN.items():
        setattr(model.config, key, value)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert {key: getattr(config, key) for key in FOREIGN} == FOREIGN
    opened = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, my_note="第二版")
    assert {key: getattr(opened.config, key) for key in FOREIGN} == FOREIGN | {"my_note": "第二版"}
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).last_hidden_state, model(ids).last_hidden_state)


def test_generation_parameters_of_an_old_file_are_dropped_with_a_warning(tmp_path, caplog):
    # transformers refuses to save a configuration that has them.
    old = {"max_length": 20, "num_beams": 1, "repetition_penalty": 1.0, "hidden_size": 64}
    config = ChineseModernBertConfig.from_dict(old)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["hidden_size"] == 64
    assert not {"max_length", "num_beams", "repetition_penalty"} & set(saved)
    assert "dropped: 'max_length', 'num_beams', 'repetition_penalty'" in caplog.text
    assert old["max_length"] == 20  # the caller's dictionary is left alone


@pytest.mark.parametrize("cls", [BertConfig, LlamaConfig, T5Config, ViTConfig, WhisperConfig])
def test_no_key_of_another_architecture_is_taken_for_a_misspelling(cls):
    ours = {field.name for field in fields(ChineseModernBertConfig)}
    theirs = {field.name for field in fields(cls)} - ours
    assert len(theirs) > 5
    config = ChineseModernBertConfig.from_dict(dict.fromkeys(theirs, 1)).to_dict()
    assert {key: config[key] for key in ours & set(config)} == {
        key: value for key, value in ChineseModernBertConfig().to_dict().items() if key in ours
    }


@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("local_atention", "local_attention"),
        ("hiddenSize", "hidden_size"),
        ("vocab-size", "vocab_size"),
        ("hidden_sise", "hidden_size"),
        ("embeding_size", "embedding_size"),
        ("max_postion_embedings", "max_position_embeddings"),
        ("intermidate_size", "intermediate_size"),
        ("initialiser_range", "initializer_range"),
        ("layer_type", "layer_types"),
        ("globl_rope_tetha", "global_rope_theta"),
        ("pad_tokn_id", "pad_token_id"),
        ("id2lable", "id2label"),
    ],
)
def test_a_misspelled_key_in_a_file_is_refused(tiny_config, tmp_path, misspelled, meant):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {misspelled: 64}))
    for read in (
        lambda: ChineseModernBertConfig.from_pretrained(tmp_path),
        lambda: ChineseModernBertConfig.from_json_file(path),
        lambda: ChineseModernBertConfig.from_dict(json.loads(path.read_text())),
    ):
        with pytest.raises(ValueError, match=f"'{misspelled}'.*Did you mean '{meant}'"):
            read()


def test_a_misspelled_override_of_from_pretrained_is_refused(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    for auto, extra in ((ChineseModernBertConfig, {}), (AutoConfig, {"trust_remote_code": True})):
        with pytest.raises(ValueError, match=r"'clasifier_dropout'.*'classifier_dropout'"):
            auto.from_pretrained(tmp_path, clasifier_dropout=0.5, **extra)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("rope_theta", "not supported.*global_rope_theta and local_rope_theta"),
        ("rope_scaling", "not supported.*rope_parameters"),
        ("partial_rotary_factor", "not supported.*all dimensions"),
        ("per_layer_config", "not supported.*same shape"),
        ("head_size", "a computed value"),
        ("to_dict", "a method"),
    ],
)
def test_a_key_that_cannot_be_followed_is_refused_in_a_file(key, message):
    with pytest.raises(ValueError, match=f"'{key}' is .*{message}"):
        ChineseModernBertConfig.from_dict({key: {"factor": 2.0}})
