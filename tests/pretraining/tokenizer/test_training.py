"""Training the tokenizer: the same bytes each time, merges within words, a size that is met."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pretraining.data.corpus import Document
from pretraining.data.tokens import SPECIAL_TOKENS
from pretraining.tokenizer import training
from pretraining.tokenizer.sampling import Sample
from pretraining.tokenizer.training import (
    SEPARATOR,
    across_borders,
    learn,
    marked_texts,
    smallest_size,
)
from pretraining.tokenizer.vocabulary import shrink
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

SENTENCES = [
    "小明每天早上骑自行车去学校。",
    "學校附近有一家賣豆漿的小店。",
    "店主姓陈，待人和气，做事麻利。\n\n    他早起磨豆子。",
]
DOCUMENTS = [Document(f"{text}\n\n    " * 20, "daily", "hans", 1) for text in SENTENCES]
SMALLEST = smallest_size()


def train(documents=DOCUMENTS, size=SMALLEST + 16) -> dict:
    return training.train(documents, size, budget=100_000, seed=0)


def learned(content: dict) -> set[str]:
    """Entries that merges made."""
    return {left + right for left, right in content["model"]["merges"]}


def test_the_same_text_gives_the_same_tokenizer_in_whatever_order_it_comes():
    assert json.dumps(train()) == json.dumps(train(DOCUMENTS[::-1]))


def test_merges_stay_within_words_and_runs_of_blanks_become_tokens():
    tokens = learned(train(size=SMALLEST + 20))
    words = {"小明", "每天", "早上", "自行车", "学校", "學校", "附近", "豆漿", "小店", "店主"}
    assert words <= tokens
    assert {"\n\n", "    "} <= tokens
    assert not tokens & {"明每", "上骑", "车去", "去学", "近有", "的小", "主姓"}


def test_a_rare_character_of_the_alphabet_is_a_token_and_another_is_spelled_in_bytes():
    tokenizer = Tokenizer.from_str(json.dumps(train()))
    assert tokenizer.encode("咗瓹", add_special_tokens=False).tokens == ["咗", "瓹"]
    tokens = tokenizer.encode("𠀀", add_special_tokens=False).tokens
    assert tokens == ["<0xF0>", "<0xA0>", "<0x80>", "<0x80>"]
    assert tokenizer.decode(tokenizer.encode("𠀀咗").ids) == "𠀀咗"


def test_special_tokens_alone_are_found_in_text():
    content = train()
    assert [token["content"] for token in content["added_tokens"]] == [*SPECIAL_TOKENS]
    tokens = Tokenizer.from_str(json.dumps(content)).encode("[unused1]<0x41>").tokens
    assert not {"[unused1]", "<0x41>"} & set(tokens)


def test_the_vocabulary_has_the_size_that_was_asked_for():
    content = train(size=SMALLEST + 18)
    assert sorted(content["model"]["vocab"].values()) == list(range(SMALLEST + 18))


def test_a_vocabulary_cut_short_is_the_one_that_a_shorter_training_gives():
    shown = [(SEPARATOR.join(["小明", "每天", "早上", "骑", "自行车", "去", "学校"]), 3)]
    characters = set("小明每天早上骑自行车去学校")
    cut = json.loads(learn(shown, characters, 325 + 13 + 6).to_str())
    shrink(cut, 325 + 13 + 4)
    shorter = json.loads(learn(shown, characters, 325 + 13 + 4).to_str())
    assert cut["model"] == shorter["model"]
    assert len(learned(cut)) == 4


def test_tokens_that_mostly_cross_borders_are_found_the_worst_first():
    """更高 is learned where the segmenter leaves it whole, and then used where it does not."""
    whole, parted = SEPARATOR.join(["更高", "的", "树"]), SEPARATOR.join(["更", "高", "的", "树"])
    other = SEPARATOR.join(["一", "人", "来"])
    shown = [(whole, 3), ("一人", 3), *[(parted, 1)] * 4, *[(other, 1)] * 5]
    content = json.loads(learn(shown, set("更高的树一人来"), 325 + 7 + 2).to_str())
    content["model"]["byte_fallback"] = True
    assert learned(content) == {"更高", "一人"}
    assert across_borders(content, shown) == ["一人", "更高"]


def test_too_little_text_for_the_vocabulary_is_refused():
    documents = [Document("太短。", "daily", "hans", 1)]
    with pytest.raises(ValueError, match="entries could be trained; give more text"):
        train(documents, 20_000)


def test_a_size_that_cuts_characters_out_is_refused():
    rare = "".join(map(chr, range(0x3400, 0x3400 + 50)))
    documents = [*DOCUMENTS, Document(rare * 2, "daily", "hans", 1)]
    with pytest.raises(ValueError, match=rf"no room for words: .* take {SMALLEST + 50} entries"):
        train(documents, SMALLEST + 16)


def test_a_tokenizer_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    training.save(train(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(ChineseModernBertTokenizer, "save_pretrained", full_disk)
        training.save(train(size=SMALLEST + 8), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def full_disk(self, folder: str) -> None:
    (Path(folder) / "tokenizer.json").write_text("{", encoding="utf-8")
    raise OSError("the disk is full")


def test_a_weighted_domain_is_shown_so_many_times_as_often():
    sample = Sample(budget=100_000, seed=0)
    for number in range(400):
        for domain in ("dialogue", "law"):
            text = f"第{number}天早上下雨，{domain}。"
            sample.add(Document(text, domain, "hans", 1))

    def shown(weights: dict) -> Counter:
        counts = Counter()
        for text, repeats in marked_texts(sample, 0, weights):
            counts["dialogue" if "dialogue" in text else "law"] += repeats
        return counts

    by_itself = shown({})
    weighted = shown({"dialogue": 1.5, "law": 0.05})
    assert weighted["dialogue"] / by_itself["dialogue"] == pytest.approx(1.5, rel=0.02)
    assert weighted["law"] / by_itself["law"] == pytest.approx(0.05, rel=0.4)
    without = shown({"law": 0})
    assert without["law"] == 0 < without["dialogue"]


def test_a_weighted_domain_wins_the_entries():
    """Two words that are equally frequent: the weight decides which of them is a token."""
    documents = [
        Document("法院。" * 40, "law", "hans", 1),
        Document("油条。" * 40, "daily", "hans", 2),
    ]

    def only_token(weights: dict) -> set[str]:
        return learned(
            training.train(documents, SMALLEST + 1, budget=1_000, seed=0, weights=weights)
        )

    assert only_token({"law": 2}) == {"法院"}
    assert only_token({"daily": 2}) == {"油条"}


def test_a_weight_of_a_domain_that_the_text_lacks_is_refused():
    with pytest.raises(ValueError, match="weights for news, but the corpus has no such domain"):
        training.train(DOCUMENTS, SMALLEST + 1, budget=1_000, seed=0, weights={"news": 2})
