"""What lies in the repository for newcomers: the corpus, the configurations, the filled masks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configuration_chinese_modernbert import ChineseModernBertConfig
from examples.fill_mask import best_fills
from pretraining.data.corpus import read_documents
from pretraining.run.configuration import load_run
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"


def test_the_corpus_is_large_and_various_enough():
    documents = list(read_documents([str(CORPUS)]))
    texts = [document.text for document in documents]
    assert len(texts) >= 60
    assert sum(map(len, texts)) >= 40_000
    assert len({document.domain for document in documents}) >= 12
    assert {document.script for document in documents} == {"hans", "hant", "yue"}
    assert sum(len(text) >= 3000 for text in texts) >= 3
    assert len(set(texts)) == len(texts)


def test_held_out_texts_share_no_paragraph_with_the_training_texts():
    train, valid = (
        {
            paragraph
            for document in read_documents([str(CORPUS / f"{split}.jsonl")])
            for paragraph in document.text.split("\n")
        }
        for split in ("train", "valid")
    )
    assert not train & valid


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.json")), ids=lambda f: f.stem)
def test_every_size_is_a_configuration(file):
    config = ChineseModernBertConfig.from_json_file(str(file))
    assert config.vocab_size == 32_000
    assert config.hidden_size == 64 * config.num_attention_heads


def test_the_large_size_is_the_papers_and_the_default():
    large = ChineseModernBertConfig.from_json_file(str(ROOT / "configs" / "large.json"))
    assert large.to_dict() == ChineseModernBertConfig().to_dict()


def test_the_run_files_have_both_stages():
    run = load_run(str(ROOT / "configs" / "quickstart.yaml"))
    assert (ROOT / run.model).exists()
    for name in ("mini.yaml", "large.yaml"):
        assert load_run(str(ROOT / "configs" / name)).stage(2).training["max_steps"] > 0
    assert run.stage(1).training["max_steps"] > run.stage(2).training["max_steps"] > 0


def test_the_likeliest_tokens_fill_the_mask():
    tokenizer = ChineseModernBertTokenizer.from_pretrained(str(ROOT))
    wanted = tokenizer.convert_tokens_to_ids(["天气", "雨"])

    def model(input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, 32_000)
        logits[0, input_ids[0] == tokenizer.mask_token_id, wanted] = torch.tensor([9.0, 8.0])
        return SimpleNamespace(logits=logits)

    fills = best_fills(model, tokenizer, "今天的[MASK]很大。", count=2)
    assert [text for text, _ in fills] == ["天气", "雨"]
    assert fills[0][1] > fills[1][1] > 0
    with pytest.raises(ValueError, match=r"no \[MASK\] in"):
        best_fills(model, tokenizer, "没有空格可填。", count=2)


def test_the_corpus_is_one_json_object_a_line_with_an_id():
    lines = [
        json.loads(line)
        for file in sorted(CORPUS.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert all(set(line) == {"id", "domain", "script", "text"} for line in lines)
    assert len({line["id"] for line in lines}) == len(lines)
