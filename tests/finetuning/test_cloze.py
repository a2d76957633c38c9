"""The probe without training: scores that equal a direct computation, and the command."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from finetuning.choice_data import BLANK, OTHER_BLANK
from finetuning.cloze import MaskedScorer, main, probe
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM

ROOT = Path(__file__).parent.parent.parent
IDIOMS = ["一举两得", "井井有条", "半途而废"]


def blank(text: str, label: int, group: int) -> dict:
    return {"id": 0, "group": group, "text": text, "choices": IDIOMS, "label": label}


EXAMPLES = [
    blank(f"她把书架收拾得{BLANK}，看着很舒服。", 1, 0),
    blank(f"学琴不能{OTHER_BLANK}，更不能{BLANK}。", 2, 1),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)


@pytest.fixture
def model(make_model, tokenizer):
    return make_model("eager", ChineseModernBertForMaskedLM, vocab_size=len(tokenizer))


class ByFrequency(torch.nn.Module):
    """A model to which every token has the same probability everywhere."""

    device = torch.device("cpu")

    def __init__(self, scores: torch.Tensor):
        super().__init__()
        self.scores = scores

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.scores.expand(*input_ids.shape, -1))


def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_a_score_is_the_log_probability_of_the_masked_idiom(model, tokenizer):
    scores, lengths = MaskedScorer(model, tokenizer).score_choices(EXAMPLES)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for example, row, counts in zip(EXAMPLES, scores, lengths, strict=True):
        left, right = example["text"].split(BLANK)
        left = ids(left.replace(OTHER_BLANK, "[MASK]" * 4))
        for idiom, score, count in zip(IDIOMS, row, counts, strict=True):
            fill = ids(idiom)
            assert count == len(fill)
            found = log_probabilities(model, [2, *left, *[4] * count, *ids(right), 3])
            expected = sum(found[1 + len(left) + n, token] for n, token in enumerate(fill))
            assert score == pytest.approx(float(expected), abs=1e-4)


def test_pseudo_log_likelihood_masks_each_token_by_itself(model, tokenizer):
    text = "学琴不能半途而废"
    ids = tokenizer(text)["input_ids"]
    expected = sum(
        float(log_probabilities(model, [*ids[:n], 4, *ids[n + 1 :]])[n, ids[n]])
        for n in range(1, len(ids) - 1)
    )
    found = MaskedScorer(model, tokenizer, batch_size=3).pseudo_log_likelihoods(["好", text])
    assert found[1] == pytest.approx(expected, abs=1e-3)


def test_long_texts_keep_what_is_around_the_blank(model, tokenizer):
    near = f"收拾得{BLANK}，"
    long = [blank("很久以前，" * 50 + near + "看着很舒服。" * 50, 1, 0)]
    scorer = MaskedScorer(model, tokenizer, max_length=16)
    [row], _ = scorer.score_choices(long)
    assert all(math.isfinite(score) for score in row)
    rows = scorer._rows(0, list(range(100, 150)), list(range(200, 250)), [[7, 8], [9, 10], [11]])
    assert [row.ids for row in rows] == [
        [2, *range(144, 150), 4, 4, *range(200, 206), 3],
        [2, *range(144, 150), 4, *range(200, 207), 3],
    ]
    assert [row.places for row in rows] == [[7, 8], [7]]
    assert [row.fills for row in rows] == [{(0, 0): [7, 8], (0, 1): [9, 10]}, {(0, 2): [11]}]


def test_calibration_takes_away_what_is_frequent_everywhere(tokenizer):
    table = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    scorer = MaskedScorer(ByFrequency(table), tokenizer)
    scores, _ = scorer.score_choices(EXAMPLES)
    alone = scorer.score_alone(IDIOMS)
    for row in scores:
        assert row == pytest.approx([alone[idiom] for idiom in IDIOMS])
    favorite = max(IDIOMS, key=alone.get)
    result = probe(scorer, EXAMPLES, texts=1)
    assert result.plain == sum(IDIOMS[one["label"]] == favorite for one in EXAMPLES) / 2
    filled = EXAMPLES[0]["text"].replace(BLANK, IDIOMS[1])
    ids = tokenizer(filled, add_special_tokens=False)["input_ids"]
    expected = math.exp(-float(table.log_softmax(-1)[ids].sum()) / len(filled))
    assert result.pseudo_perplexity == pytest.approx(expected, rel=1e-4)


def test_a_model_without_masks_is_refused():
    with pytest.raises(ValueError, match="no mask token"):
        MaskedScorer(None, SimpleNamespace(mask_token_id=None))


def test_the_command_reads_chid_and_writes_its_result(tmp_path, capsys):
    folder = tmp_path / "fewclue" / "chid"
    folder.mkdir(parents=True)
    line = {"id": 0, "candidates": IDIOMS, "content": "书架#idiom#。", "answer": 1}
    lines = "\n".join(map(json.dumps, [line, line | {"id": 1}]))
    (folder / "test_public.json").write_text(lines, encoding="utf-8")
    output = tmp_path / "cloze.json"
    main(["--model", str(ROOT), "--data", str(tmp_path), "--texts", "1", "--output", str(output)])
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["examples"] == 2 and result["texts"] == 1
    assert result["chance"] == pytest.approx(1 / 3)
    assert f"calibrated {result['calibrated']:.1%}" in capsys.readouterr().out
    (folder / "test_public.json").write_text(
        '{"candidates": ["一", "二"], "content": "#idiom#"}', encoding="utf-8"
    )
    with pytest.raises(SystemExit, match="1 examples have no answer"):
        main(["--data", str(tmp_path)])
