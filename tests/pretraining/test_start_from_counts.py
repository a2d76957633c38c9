"""A model that starts from counts: what its embeddings and bias say, and what stays random."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, set_seed

from commands import run_main
from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import split_row
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining import start_from_counts
from pretraining.data.preparation import Preparation
from runs import ROOT, SHAPE

CONFIG = SHAPE | {"hidden_size": 16, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs the command on rows of the example corpus; returns the folder that it wrote."""
    folder = tmp_path_factory.mktemp("counts")
    corpus = [str(ROOT / "examples" / "corpus" / "train.jsonl")]
    Preparation(corpus, ROOT / "tokenizer.json", 64, folder / "rows").run()
    (folder / "model.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    command = ["--rows", f"{folder}/rows", "--model", f"{folder}/model.json"]
    command += ["--output", f"{folder}/start"]
    run_main(start_from_counts, *command)
    return folder, command


@pytest.fixture(scope="module")
def model(start):
    folder, _ = start
    return AutoModelForMaskedLM.from_pretrained(folder / "start", trust_remote_code=True)


def test_information_is_that_of_the_formula_without_the_tokens_left_out():
    rows = np.array([[0, 1, 0, 5], [1, 0, 3, 5], [0, 3, 0, 5], [5, 5, 5, 5]], dtype=np.float32)
    table = start_from_counts.ppmi(start_from_counts.sparse.csr_array(rows), [3]).toarray()
    of_token = np.array([1, 4, 3])
    of_context = of_token**0.75 / (of_token**0.75).sum()
    expected = np.log(rows[:3, :3].clip(1e-9) / of_token[:, None] / of_context).clip(0)
    np.testing.assert_allclose(table[:3, :3], expected, rtol=1e-5)
    assert not table[3].any() and not table[:, 3].any()


def test_tokens_that_occur_get_embeddings_of_the_usual_length(model):
    embeddings = model.get_input_embeddings().weight
    lengths = embeddings.norm(dim=-1)
    same = (lengths - lengths.median()).abs() < 1e-4
    assert 0.05 < same.float().mean() < 0.9  # those of tokens that occur
    assert lengths.std() < 0.3 * lengths.mean()


def test_special_tokens_and_those_that_do_not_occur_keep_their_random_embeddings(start, model):
    folder, _ = start
    rows = start_from_counts.open_rows(folder / "rows")
    missing = np.ones(CONFIG["vocab_size"], dtype=bool)
    missing[np.unique([split_row(row)[0] for row in rows])] = False
    missing[list(rows.manifest["special_token_ids"].values())] = True
    set_seed(1)
    fresh = ChineseModernBertForMaskedLM(ChineseModernBertConfig(**CONFIG)).get_input_embeddings()
    assert torch.equal(model.get_input_embeddings().weight[missing], fresh.weight[missing])


def test_tokens_with_the_same_neighbors_lie_closer_than_others(model):
    embeddings = model.get_input_embeddings().weight
    lengths = embeddings.norm(dim=-1)
    known = torch.nn.functional.normalize(embeddings[(lengths - lengths.median()).abs() < 1e-4])
    random = torch.nn.functional.normalize(torch.randn_like(known))
    nearest = [(x @ x.T).fill_diagonal_(0).amax(1).mean() for x in (known, random)]
    assert nearest[0] > nearest[1]


def test_the_bias_orders_tokens_by_frequency(start, model):
    folder, _ = start
    rows = start_from_counts.open_rows(folder / "rows")
    tokens = np.concatenate([split_row(row)[0] for row in rows])
    seen = np.bincount(tokens, minlength=CONFIG["vocab_size"]).clip(0.5)
    bias = model.decoder.bias[5:].detach().numpy()
    np.testing.assert_allclose(np.diff(bias), np.diff(np.log(seen[5:])), atol=1e-4)
    assert model.decoder.bias[:5].max() <= bias.min() + 1e-6  # special tokens are never predicted


def test_an_output_that_is_there_is_not_overwritten(start):
    _, command = start
    with pytest.raises(SystemExit, match="start is not an empty folder"):
        run_main(start_from_counts, *command)


def test_rows_of_a_larger_vocabulary_are_refused_and_nothing_is_left(start):
    folder, command = start
    small = folder / "small.json"
    small.write_text(json.dumps(CONFIG | {"vocab_size": 1_000}), encoding="utf-8")
    changed = [*command[:2], "--model", small, "--output", folder / "other"]
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit, match=r"vocab_size in .*small.json is 1000"):
        run_main(start_from_counts, *changed)
    assert sorted(folder.iterdir()) == before


def test_a_decoder_without_bias_starts_from_counts_too(start):
    folder, _ = start
    config = ChineseModernBertConfig(**CONFIG, decoder_bias=False)
    rows = start_from_counts.open_rows(folder / "rows")
    model, known = start_from_counts.make_model(config, rows, seed=1)
    assert model.decoder.bias is None and known > 100
