"""The twin's model: as large as ours, and BertForMaskedLM in what it computes."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM

from corpora import ROOT
from experiments.twin.model import TOLERANCE, Shape, Twin, parameters, shape_like


@pytest.mark.parametrize("vocab_size", [21_128, 8_000])
def test_it_has_the_parameters_of_our_model(vocab_size):
    ours = json.loads((ROOT / "configs" / "mini.json").read_text(encoding="utf-8"))
    shape = shape_like(ROOT / "configs" / "mini.json", vocab_size)
    assert (shape.hidden_size, shape.heads) == (ours["hidden_size"], ours["num_attention_heads"])
    # Embeddings and layers of our mini model, counted by hand: norms and biases are little.
    hidden, wide, layers = 256, ours["intermediate_size"], ours["num_hidden_layers"]
    by_hand = ours["vocab_size"] * hidden + layers * (4 * hidden**2 + 3 * hidden * wide)
    size = parameters(shape.config(vocab_size))
    assert abs(size / by_hand - 1) < TOLERANCE + 0.01
    assert size == Twin(shape.config(vocab_size)).num_parameters()


def test_a_model_that_is_all_embeddings_has_no_twin(tmp_path):
    config = json.loads((ROOT / "configs" / "mini.json").read_text(encoding="utf-8"))
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(config | {"num_hidden_layers": 1, "vocab_size": 500}), "utf-8")
    with pytest.raises(ValueError, match=r"flat\.json: no BERT of hidden_size 256 and 21128"):
        shape_like(file, 21_128)


@pytest.fixture(scope="module")
def twin() -> Twin:
    torch.manual_seed(0)
    config = Shape(hidden_size=32, heads=2, layers=2, intermediate_size=64).config(60)
    # So large that whoever sees a neighbor gives other logits.
    config.initializer_range = 0.5
    return Twin(config)


def test_a_document_of_a_row_is_read_as_if_it_stood_alone(twin):
    documents = [torch.randint(5, 60, (length,)) for length in (9, 14)]
    alone = BertForMaskedLM(twin.config)
    alone.load_state_dict(twin.state_dict())
    expected = [alone(document[None]).logits[0] for document in documents]

    row = torch.cat([*documents, torch.zeros(5, dtype=torch.long)])[None]
    positions = torch.cat([torch.arange(9), torch.arange(14), torch.zeros(5, dtype=torch.long)])
    masked = torch.tensor([1, 8, 9, 22, 0])
    labels = torch.tensor([7, 8, 9, 10, -100])
    output = twin(row, positions[None], masked, labels)

    wanted = torch.stack([expected[0][1], expected[0][8], expected[1][0], expected[1][13]])
    torch.testing.assert_close(output.logits[:4], wanted)
    torch.testing.assert_close(output.loss, F.cross_entropy(wanted, labels[:4]))
