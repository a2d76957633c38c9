"""The model at the root, which a clone opens as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.preparation import Preparation
from pretraining.data.rows import open_rows
from pretraining.model_report import predict, report
from pretraining.run import ngram_baseline
from pretraining.run.evaluation import evaluation_collator

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "model.safetensors"


SCRIPT = """
import json, sys
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, pipeline

texts = ["今天下雨了。", "外面在下雨，出门要带伞。", "安装前请先更新软件包索引。"]
told = {}
fill_mask = pipeline("fill-mask", model=".", trust_remote_code=True)
masked = ["当事人可以依法向人民法院提起[MASK]。", "这家店的服务态度很[MASK]，下次还会再来。"]
told["fills"] = [fill_mask(text)[0]["token_str"] for text in masked]
AutoModel.from_pretrained(".", trust_remote_code=True)
model = SentenceTransformer(".", trust_remote_code=True)
found = model.similarity(*[model.encode(texts, show_progress_bar=False)] * 2)
told["similarity"] = found.tolist()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def opened() -> tuple[dict, str]:
    """What a fresh process at the root found, and what it wrote to stderr."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_the_configuration_describes_the_weights():
    with torch.device("meta"):
        config = ChineseModernBertConfig.from_pretrained(str(ROOT))
        model = ChineseModernBertForMaskedLM(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    with safe_open(WEIGHTS, "pt") as weights:
        held = {name: tuple(weights.get_slice(name).get_shape()) for name in list(weights.keys())}
    assert held == wanted
    assert WEIGHTS.stat().st_size <= 64 << 20


def test_it_fills_masks(opened):
    assert opened[0]["fills"] == ["诉讼", "好"]


def test_sentence_transformers_opens_it(opened):
    similarity = opened[0]["similarity"]
    assert len(similarity) == 3 and all(len(row) == 3 for row in similarity)
    assert similarity[0][1] > similarity[0][2]


def test_opening_it_reports_nothing_because_nothing_is_wrong(opened):
    errors = opened[1]
    for word in ("REPORT", "UNEXPECTED", "MISSING", "decoder", "head.", "newly initialized"):
        assert word not in errors, errors


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict:
    """Rows of the example corpus, which it has never read."""
    opened = {}
    for split in ("train", "valid"):
        folder = tmp_path_factory.mktemp(split) / "rows"
        corpus = [str(ROOT / "examples" / "corpus" / f"{split}.jsonl")]
        Preparation(corpus, ROOT / "tokenizer.json", 256, folder).run()
        opened[split] = open_rows(folder)
    return opened


def test_it_knows_more_of_new_text_than_counting(rows):
    """The 5-gram has counted texts by the same hand, the model has not."""
    held_out, tokenizer = rows["valid"], Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    (counted,) = ngram_baseline.evaluate(rows["train"], [held_out], ngram_baseline.MAX_ORDER)
    predicted = predict(str(ROOT), held_out, evaluation_collator(held_out))
    sides = report("", held_out, tokenizer, {"model": predicted, "5-gram": counted}).sides
    model, counted = sides["model"].score(), sides["5-gram"].score()
    assert model.accuracy.value > 1.1 * counted.accuracy.value
    assert model.bits_per_character.value < counted.bits_per_character.value - 0.3
