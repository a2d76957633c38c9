"""The stream: what a batch is checked for, which tokens are real, and the angles of RoPE."""

import math

import pytest
import torch

from batches import SHAPES, real_tokens, stream_of
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from stream_chinese_modernbert import make_stream, rotary_angles, rotate

GLOBAL, LOCAL = "full_attention", "sliding_attention"


# --- RoPE -------------------------------------------------------------------------------------


def test_rope_turns_each_pair_by_position_over_a_power_of_theta(tiny_config):
    torch.manual_seed(0)
    x, positions = torch.randn(6, 2, 16), torch.tensor([[0, 1, 2, 0, 5, 300]])
    stream = make_stream((1, 6), torch.device("cpu"), position_ids=positions)
    for layer_type, theta in ((GLOBAL, 80_000.0), (LOCAL, 10_000.0)):
        turned = rotate(x, *rotary_angles(tiny_config(), layer_type, stream))
        for token, position in enumerate(positions[0].tolist()):
            for pair in range(8):
                angle = position * theta ** (-2 * pair / 16)
                first, second = x[token, :, pair], x[token, :, pair + 8]
                expected = first * math.cos(angle) - second * math.sin(angle)
                # An angle of 300 is exact to 3e-5 in fp32, and the sine and cosine with it.
                assert (turned[token, :, pair] - expected).abs().max() <= 1e-4
                expected = second * math.cos(angle) + first * math.sin(angle)
                assert (turned[token, :, pair + 8] - expected).abs().max() <= 1e-4


# --- the stream itself ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stream_is_the_real_tokens_end_to_end(shape):
    batch = SHAPES[shape]()
    stream, ids = stream_of(batch), batch["input_ids"]
    real = real_tokens(batch)
    assert torch.equal(stream.unpad(ids), ids[real])
    assert torch.equal(stream.pad(stream.unpad(ids), 9), ids.masked_fill(~real, 9))
    assert stream.bounds == tuple(stream.cu_seqlens.tolist())
    lengths = stream.cu_seqlens.diff().tolist()
    assert stream.longest == max(lengths)
    assert stream.document.tolist() == [d for d, n in enumerate(lengths) for _ in range(n)]
    assert stream.positions.tolist() == [i for n in lengths for i in range(n)]


def test_a_document_is_pooled_to_the_mean_of_its_tokens():
    stream = stream_of(SHAPES["packed"]())
    states = torch.randn(stream.bounds[-1], 8, generator=torch.Generator().manual_seed(0))
    expected = [part.mean(0) for part in states.split(stream.lengths.tolist())]
    for means in (stream.pool(states, "mean"), stream.means_by_index(states)):
        assert (means - torch.stack(expected)).abs().max() <= 1e-6
    firsts = torch.stack([states[begin] for begin in stream.bounds[:-1]])
    assert torch.equal(stream.pool(states, "cls"), firsts)


# --- input that does not fit ------------------------------------------------------------------

IDS = torch.full((1, 8), 7)
CU = torch.tensor([0, 3, 8], dtype=torch.int32)
MISFITS = {
    "neither ids nor embeddings": ({}, "exactly one of input_ids and inputs_embeds"),
    "ids and embeddings": (
        {"input_ids": IDS, "inputs_embeds": torch.zeros(1, 8, 32)},
        "exactly one of input_ids and inputs_embeds",
    ),
    "ids without a batch": ({"input_ids": IDS[0]}, "input_ids must be"),
    "embeddings without a batch": ({"inputs_embeds": torch.zeros(8, 32)}, "inputs_embeds must be"),
    "mask of another length": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 7)},
        r"attention_mask has shape \(1, 7\), expected \(1, 8\)",
    ),
    "mask of another batch": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 8)},
        r"attention_mask has shape \(2, 8\), expected \(1, 8\)",
    ),
    "four-dimensional mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 1, 8, 8)},
        "attention_mask has shape",
    ),
    "nothing but padding": (
        {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)},
        "no real token",
    ),
    "no tokens at all": ({"input_ids": IDS[:, :0]}, "no real token"),
    "positions of another length": (
        {"input_ids": IDS, "position_ids": torch.arange(5)[None]},
        r"position_ids has shape \(1, 5\)",
    ),
    "lengths of queries alone": ({"input_ids": IDS, "cu_seq_lens_q": CU}, "given together"),
    "lengths of keys alone": ({"input_ids": IDS, "cu_seq_lens_k": CU}, "given together"),
    "lengths of queries and keys differ": (
        {
            "input_ids": IDS,
            "cu_seq_lens_q": CU,
            "cu_seq_lens_k": torch.tensor([0, 4, 8], dtype=torch.int32),
        },
        "given together, and equal",
    ),
    "zeros in the mask beside lengths": (
        {
            "input_ids": IDS,
            "cu_seq_lens_q": CU,
            "cu_seq_lens_k": CU,
            "attention_mask": torch.tensor([[1] * 7 + [0]]),
        },
        "leave attention_mask out",
    ),
} | {
    f"lengths that {what}": (
        {"input_ids": ids, "cu_seq_lens_q": torch.tensor(cu), "cu_seq_lens_k": torch.tensor(cu)},
        "cu_seq_lens_q must rise from 0",
    )
    for what, ids, cu in (
        ("stop short", IDS, [0, 3, 7]),
        ("reach too far", IDS, [0, 3, 9]),
        ("start late", IDS, [1, 8]),
        ("fall", IDS, [0, 5, 3, 8]),
        ("belong to two rows", IDS.expand(2, 8), [0, 8, 16]),
        ("hold nothing", IDS, []),
    )
}


@pytest.mark.parametrize(("inputs", "message"), MISFITS.values(), ids=MISFITS)
def test_input_that_does_not_fit_is_refused(make_model, inputs, message):
    model = make_model(cls=ChineseModernBertForMaskedLM)
    with pytest.raises(ValueError, match=message):
        model(**inputs)
