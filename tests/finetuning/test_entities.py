"""Entities: examples become labeled tokens, and the labels become the same entities again."""

import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetuning.entities import EntitySettings, best_tags, decode, features

LABELS = ("address", "company")
TEXT = "他从青岛搬到长沙以后，在长沙银行做了十年的会计，最近又回青岛开店。"


def find(words: str, label: str, after: int = 0) -> list:
    start = TEXT.index(words, after)
    return [start, start + len(words), label]


EXAMPLE = {
    "id": "A",
    "text": TEXT,
    "entities": [
        find("青岛", "address"),
        find("长沙", "address"),
        find("长沙银行", "company"),
        find("青岛", "address", after=10),
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(".", trust_remote_code=True)


def certain(rows: list[dict], tags: int) -> list[np.ndarray]:
    """The logits of a model that is sure of every label."""
    return [np.eye(tags)[np.maximum(row["labels"], 0)] * 9 for row in rows]


@pytest.mark.parametrize("max_length", [512, 12])
def test_entities_come_back_exactly(tokenizer, max_length):
    settings = EntitySettings(LABELS, max_length, stride=4)
    rows, decoding = features([EXAMPLE], tokenizer, settings, training=True)
    assert all(len(row["input_ids"]) <= max_length for row in rows)
    assert (len(rows) > 1) == (max_length == 12)
    assert not decoding.inexact
    assert decode(certain(rows, len(settings.tags)), decoding) == [EXAMPLE["entities"]]


def test_special_tokens_have_no_label_and_padding_is_ignored(tokenizer):
    settings = EntitySettings(LABELS)
    rows, decoding = features([EXAMPLE, EXAMPLE], tokenizer, settings, training=True)
    assert rows[0]["labels"][0] == rows[0]["labels"][-1] == -100
    assert -100 not in rows[0]["labels"][1:-1]
    padded = np.full((2, len(rows[0]["labels"]) + 7, len(settings.tags)), -100.0)
    padded[:, :-7] = certain(rows, len(settings.tags))
    assert decode(padded, decoding) == [EXAMPLE["entities"]] * 2


def test_bytes_of_one_character_are_one_entity(tokenizer):
    text = "住在𪚥𪚥村。"
    settings = EntitySettings(LABELS)
    example = {"id": "B", "text": text, "entities": []}
    rows, decoding = features([example], tokenizer, settings, training=True)
    tokens = decoding.texts[0]
    first = [n for n in range(len(tokens)) if tokens.text_span(n, n) == (2, 3)]
    second = [n for n in range(len(tokens)) if tokens.text_span(n, n) == (3, 4)]
    assert len(first) > 1
    wanted = np.zeros(len(tokens), dtype=int)
    begin, other, inside = (settings.tags.index(t) for t in ("B-address", "B-company", "I-company"))
    wanted[first] = [begin, *[other] * (len(first) - 1)]
    wanted[second] = inside
    logits = np.zeros((1, len(rows[0]["labels"]), len(settings.tags)))
    logits[0, 1 : 1 + len(tokens)] = 9 * np.eye(len(settings.tags))[wanted]
    assert decode(logits, decoding) == [[[2, 3, "address"]]]


def test_a_token_is_judged_where_it_has_most_context(tokenizer):
    settings = EntitySettings(LABELS, max_length=12, stride=2)
    rows, decoding = features([EXAMPLE], tokenizer, settings, training=True)
    logits = certain(rows, len(settings.tags))
    total = len(decoding.texts[0])
    for row, (_, start, stop) in zip(logits, decoding.rows, strict=True):
        # Windows of 10 tokens start 2 apart, so the 3 tokens at an edge within the text are nearer
        # to the middle of another window.
        wrong = 50 * np.eye(len(settings.tags))[1]
        if start > 0:
            row[1:4] = wrong
        if stop < total:
            row[-4:-1] = wrong
    assert decode(logits, decoding) == [EXAMPLE["entities"]]


def test_entities_that_end_within_tokens_are_counted_and_trained_on_what_holds_them(tokenizer):
    assert "银行" in tokenizer.get_vocab()
    example = {"id": 0, "text": "银行", "entities": [[0, 1, "address"], [1, 2, "company"]]}
    settings = EntitySettings(LABELS, borders="plain")
    rows, decoding = features([example], tokenizer, settings, training=True)
    assert decoding.inexact == {"ends within a token": 1, "no tokens of its own": 1}
    assert decode(certain(rows, 5), decoding) == [[[0, 2, "address"]]]
    _, unlabeled = features([example], tokenizer, settings, training=False)
    assert unlabeled.inexact == decoding.inexact


def test_without_training_rows_have_no_labels(tokenizer):
    unlabeled = {"id": 0, "text": TEXT, "entities": None}
    rows, _ = features([unlabeled], tokenizer, EntitySettings(LABELS), training=False)
    assert set(rows[0]) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="no entities listed"):
        features([unlabeled], tokenizer, EntitySettings(LABELS), training=True)


def test_an_unknown_label_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"'A': unknown label 'company'; the labels are address"):
        features([EXAMPLE], tokenizer, EntitySettings(("address",)), training=True)


def test_best_tags_are_those_of_a_search_through_all_sequences():
    tags = EntitySettings(LABELS).tags
    random = np.random.default_rng(0)

    def is_allowed(sequence) -> bool:
        names = ["O", *(tags[n] for n in sequence)]
        return all(
            not new.startswith("I-") or old in (new, f"B-{new[2:]}")
            for old, new in itertools.pairwise(names)
        )

    allowed = [s for s in itertools.product(range(len(tags)), repeat=4) if is_allowed(s)]
    for scores in random.normal(size=(20, 4, len(tags))):
        best = max(allowed, key=lambda s: sum(scores[np.arange(4), list(s)]))
        assert best_tags(scores, tags).tolist() == list(best)
