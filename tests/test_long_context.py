"""Beyond the trained context: RoPE scaling as transformers has it, through the configuration."""

import math

import pytest
import torch

from batches import documents, flatten, pad_rows
from modeling_chinese_modernbert import make_stream, rotary_angles

GLOBAL, LOCAL = "full_attention", "sliding_attention"
THETA, SIZE = 80_000.0, 16
PAIRS = range(0, SIZE, 2)
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}


@pytest.fixture
def scaled(tiny_config):
    """Returns `scaled(name)`: a configuration trained for 128 tokens whose global layers scale."""

    def build(name):
        context = 512 if name == "yarn" else 128
        return tiny_config(
            max_position_embeddings=context, rope_parameters={GLOBAL: SCALINGS[name]}
        )

    return build


def angles_of(config, layer_type, *lengths):
    """(total_tokens, pairs) cosines and sines of the angles of a flattened batch."""
    batch = flatten(documents(*lengths))
    stream = make_stream((1, sum(lengths)), torch.device("cpu"), cu_seqlens=batch["cu_seq_lens_q"])
    return [x[:, 0, SIZE // 2 :] for x in rotary_angles(config, layer_type, stream)]


def test_linear_scaling_divides_every_frequency(scaled):
    cos, sin = angles_of(scaled("linear"), GLOBAL, 300)
    for pair in PAIRS:
        angle = 200 / 4.0 * THETA ** (-pair / SIZE)
        assert cos[200, pair // 2] == pytest.approx(math.cos(angle), abs=1e-5)
        assert sin[200, pair // 2] == pytest.approx(math.sin(angle), abs=1e-5)


def test_dynamic_scaling_raises_the_base_by_the_length_of_each_document(scaled):
    cos, _ = angles_of(scaled("dynamic"), GLOBAL, 300, 100)
    base = THETA * (4.0 * 300 / 128 - 3.0) ** (SIZE / (SIZE - 2))
    for pair in PAIRS:
        assert cos[200, pair // 2] == pytest.approx(
            math.cos(200 * base ** (-pair / SIZE)), abs=1e-4
        )
        # The second document fits the trained context, and nothing changes for it.
        assert cos[300 + 50, pair // 2] == pytest.approx(
            math.cos(50 * THETA ** (-pair / SIZE)), abs=1e-4
        )


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_sharpens(scaled):
    cos, sin = angles_of(scaled("yarn"), GLOBAL, 300)
    magnitude = 0.1 * math.log(4.0) + 1
    assert (cos**2 + sin**2).sqrt() == pytest.approx(magnitude, rel=1e-5)
    # The first pair turns 128 / (2 pi) = 20 times within the context, the last not once.
    assert torch.atan2(sin[1, 0], cos[1, 0]) < 1.0
    slowest = torch.atan2(sin[200, -1], cos[200, -1])
    assert slowest == pytest.approx(200 / 4.0 * THETA ** (-14 / SIZE), rel=1e-3)


@pytest.mark.parametrize("name", SCALINGS)
def test_local_layers_are_left_alone(scaled, tiny_config, name):
    for one, other in zip(
        angles_of(scaled(name), LOCAL, 300), angles_of(tiny_config(), LOCAL, 300), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_long_document_moves_no_other(make_model, scaled, name):
    config = scaled(name)
    model = make_model(
        rope_parameters=config.rope_parameters,
        max_position_embeddings=config.max_position_embeddings,
    )
    long, short = documents(500, 90)
    with torch.no_grad():
        together = model(**pad_rows([long, short], "left")).last_hidden_state[1, -90:]
        alone = model(input_ids=short[None]).last_hidden_state[0]
    assert (together - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_is_saved_and_loaded(make_model, scaled, tmp_path, name):
    config = scaled(name)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_given_to_from_pretrained_keeps_the_frequencies(tiny_config, tmp_path, name):
    config = tiny_config(global_rope_theta=5_000.0)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path, rope_parameters={GLOBAL: SCALINGS[name]})
    entries = again.rope_parameters
    assert entries[GLOBAL] == {"rope_theta": 5_000.0, **SCALINGS[name]}
    assert entries[LOCAL] == config.rope_parameters[LOCAL]
    with pytest.raises(ValueError, match="needs a factor of at least 1"):
        type(config).from_pretrained(tmp_path, rope_parameters={GLOBAL: {"rope_type": "linear"}})
    again = type(config).from_pretrained(tmp_path, global_rope_theta=7_000.0)
    assert again.rope_parameters[GLOBAL]["rope_theta"] == 7_000.0


def test_documents_beyond_8192_tokens_run(make_model):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    model = make_model(rope_parameters={GLOBAL: yarn}, max_position_embeddings=32_768)
    (doc,) = documents(9000)
    with torch.no_grad():
        states = model(input_ids=doc[None]).last_hidden_state
    assert states.shape == (1, 9000, 32) and states.isfinite().all()
