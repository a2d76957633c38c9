"""Token classification: words of Chinese text, whole characters, texts of any length."""

import itertools
import sys

import numpy as np
import pytest
import regex
import torch
from transformers import AutoTokenizer
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.pipelines.token_classification import TokenClassificationPipeline

from model_folders import ROOT
from modeling_chinese_modernbert import ChineseModernBertForTokenClassification
from spans_chinese_modernbert import (
    character_starts,
    context_in_window,
    group_spans,
    overlapping_windows,
)
from test_tokenizer import HOSTILE
from token_classification_chinese_modernbert import (
    ChineseModernBertTokenClassificationPipeline,
    combine_scores,
)

STRATEGIES = ("none", "simple", "first", "max", "average")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "PER")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)


@pytest.fixture
def label(tiny_config, tokenizer):
    """Returns `label(logits, …)`: a pipeline whose model answers `logits(input_ids)`.

    `logits` may also be {text: label}: the tokens of a text then get that label, all others "O".
    """
    names = dict(enumerate(LABELS))
    config = tiny_config(vocab_size=len(tokenizer), id2label=names, max_position_embeddings=512)
    model = ChineseModernBertForTokenClassification(config).eval()

    def build(logits, pipeline=ChineseModernBertTokenClassificationPipeline):
        if isinstance(logits, dict):
            table = torch.zeros(len(tokenizer), len(LABELS))
            table[:, 0] = 2
            for text, name in logits.items():
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                table[ids, LABELS.index(name)] = 5
            logits = table.__getitem__

        def forward(input_ids, attention_mask):
            scores = logits(input_ids)
            # What lies at padding must not matter.
            return TokenClassifierOutput(logits=scores.where(attention_mask[..., None] > 0, 99.0))

        model.forward = forward
        return pipeline(model=model, tokenizer=tokenizer)

    return build


def spans(entities):
    return [(entity["start"], entity["end"]) for entity in entities]


def check(entities, text):
    """Each word is the text's own, in order, and no character is cut."""
    borders = character_starts(text) | {len(text)}
    for entity in entities:
        assert entity["word"] == text[entity["start"] : entity["end"]] != ""
        assert {entity["start"], entity["end"]} <= borders
    assert all(one["end"] <= other["start"] for one, other in itertools.pairwise(entities))


# Text, what the model takes for persons, the persons' spans.
PERSONS = {
    "the issue's": ("周敏。住在西安", "周敏", [(0, 2)]),
    "three characters": ("请问赵小兰老师在吗？", "赵小兰", [(2, 5)]),
    "twice": ("孙悦来了，孙悦又走了。", "孙悦", [(0, 2), (5, 7)]),
    "mixed scripts": ("昨天Lucy去了咖啡馆。", "Lucy", [(2, 6)]),
    "accents": ("élodie和Zoë在学中文", "Zoë", [(7, 10)]),
    "decomposed": ("e\u0301lodie在学中文", "e\u0301lodie", [(0, 7)]),
    "Cyrillic": ("老师叫Наташа，教俄语。", "Наташа", [(3, 9)]),
    "full width": ("用户ＡＢＣ１２已登录。", "ＡＢＣ１２", [(2, 7)]),
    "blanks around": ("  \u3000陈静\n去了公园  ", "陈静", [(3, 5)]),
    "double blanks": ("周敏  在  西安", "周敏", [(0, 2)]),
    "joined emoji": ("👩‍👩‍👧‍👦和孙悦", "👩‍👩‍👧‍👦", [(0, 7)]),
    "a character in bytes": ("𠀋𠀍村很远", "𠀋𠀍", [(0, 2)]),
    "in bytes, traditional": ("張𠮷在西安", "張𠮷", [(0, 2)]),
    "private use": ("他叫\ue000。", "\ue000", [(2, 3)]),
    "markup": ("<p>周敏</p>", "周敏", [(3, 5)]),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", PERSONS)
def test_entities_are_exact_with_every_strategy(label, case, strategy):
    text, name, expected = PERSONS[case]
    entities = label({name: "PER"})(text, aggregation_strategy=strategy)
    check(entities, text)
    if strategy == "none":
        assert {entity["entity"] for entity in entities} == {"PER"}
        found = [
            (start + place, start + place + 1)
            for start, end in spans(entities)
            for place in range(end - start)
        ]
        assert found == [(at, at + 1) for start, end in expected for at in range(start, end)]
    else:
        assert {entity["entity_group"] for entity in entities} == {"PER"}
        assert spans(entities) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_text_loses_or_cuts_a_character(label, tokenizer, strategy):
    table = torch.randn(len(tokenizer), len(LABELS), generator=torch.Generator().manual_seed(0))
    pipe = label(table.__getitem__)
    for text in filter(str.strip, HOSTILE.values()):
        entities = pipe(text, aggregation_strategy=strategy, ignore_labels=[])
        check(entities, text)
        assert "".join(entity["word"] for entity in entities) == text


def test_words_that_share_a_token_are_judged_as_one(label, tokenizer):
    text = "下雨天不出门。"
    assert tokenizer.tokenize(text)[-3:-1] == ["不出", "门"]
    assert [word for word, _, _ in tokenizer.segment(text)] == ["下雨天", "不", "出门", "。"]
    pipe = label({"不出": "PER"})
    for strategy in ("first", "max"):
        entities = pipe(text, aggregation_strategy=strategy)
        assert [entity["word"] for entity in entities] == ["不出门"]
    assert [e["word"] for e in pipe(text, aggregation_strategy="simple")] == ["不出"]


def test_strategies_combine_probabilities(label):
    scores = np.array([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.2, 0.8, 0.0], [0.5, 0.3, 0.2]])
    firsts = np.array([0, 3])
    assert combine_scores(scores, firsts, "first").tolist() == [[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]]
    assert combine_scores(scores, firsts, "max").tolist() == [[0.2, 0.8, 0.0], [0.5, 0.3, 0.2]]
    average = combine_scores(scores, firsts, "average")
    assert average == pytest.approx(np.array([[0.9 / 3, 1.4 / 3, 0.7 / 3], [0.5, 0.3, 0.2]]))


def test_a_word_whose_tokens_disagree(label, tokenizer):
    text = "赵小兰来了"
    assert tokenizer.tokenize(text)[:3] == ["赵", "小", "兰"]
    rows = {"赵": [3.0, 0, 0, 0, 0, 2], "小": [0, 0, 0, 0, 0, 5.0], "兰": [1, 0, 0, 0, 0, 2.0]}
    table = torch.zeros(len(tokenizer), len(LABELS))
    table[:, 0] = 9
    for token, row in rows.items():
        table[tokenizer.convert_tokens_to_ids(token)] = torch.tensor(row)
    pipe = label(table.__getitem__)
    found = {s: spans(pipe(text, aggregation_strategy=s)) for s in STRATEGIES}
    assert found == {
        "none": [(1, 2), (2, 3)],
        "simple": [(1, 3)],
        "first": [],
        "max": [(0, 3)],
        "average": [(0, 3)],
    }
    shares = torch.stack([table[tokenizer.convert_tokens_to_ids(t)] for t in rows]).softmax(-1)
    for strategy, score in (("max", shares[1, 5]), ("average", shares.mean(0)[5])):
        entity = pipe(text, aggregation_strategy=strategy)[0]
        assert entity["score"] == pytest.approx(score.item())


def test_a_character_in_bytes_has_one_label(label, tokenizer):
    # Fine-tuning labels the first token of a word: what the others say is not trained.
    text = "𠮷在家"
    table = torch.zeros(len(tokenizer), len(LABELS))
    table[:, 0] = 5
    table[tokenizer.convert_tokens_to_ids("<0xF0>"), 5] = 9
    table[tokenizer.convert_tokens_to_ids("<0xB7>"), 3] = 12
    pipe = label(table.__getitem__)
    kinds = {
        strategy: [
            (e.get("entity", e.get("entity_group")), e["start"], e["end"])
            for e in pipe(text, aggregation_strategy=strategy)
        ]
        for strategy in ("none", "simple", "first", "max")
    }
    assert kinds == {
        "none": [("PER", 0, 1)],
        "simple": [("PER", 0, 1)],
        "first": [("PER", 0, 1)],
        "max": [("LOC", 0, 1)],
    }


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_where_transformers_is_right_ours_gives_the_same(label, tokenizer, strategy):
    text = "周敏和赵小兰昨天在西安的图书馆看书，今天去了咖啡馆。"
    table = torch.randn(len(tokenizer), len(LABELS), generator=torch.Generator().manual_seed(1))
    found = label(table.__getitem__)(text, aggregation_strategy=strategy)
    theirs = label(table.__getitem__, TokenClassificationPipeline)(
        text, aggregation_strategy=strategy
    )
    assert len(found) == len(theirs) > 5
    for entity, other in zip(found, theirs, strict=True):
        assert entity.pop("score") == pytest.approx(other.pop("score"))
        assert entity == other


def test_neighbors_begin_an_entity_each_where_labels_say_so(label):
    pipe = label({"周": "B-PER", "敏": "I-PER", "赵": "B-PER", "兰": "I-PER", "西安": "B-LOC"})
    entities = pipe("周敏赵兰西安", aggregation_strategy="simple")
    found = [(entity["entity_group"], entity["word"]) for entity in entities]
    assert found == [("PER", "周敏"), ("PER", "赵兰"), ("LOC", "西安")]


def test_labels_to_ignore(label):
    pipe = label({"周敏": "B-PER", "西安": "B-LOC"})
    everything = pipe("周敏在西安", ignore_labels=[])
    assert [entity["entity"] for entity in everything] == ["B-PER", "B-PER", "O", "B-LOC"]
    assert [e["word"] for e in pipe("周敏在西安", ignore_labels=["O", "B-PER"])] == ["西安"]
    groups = pipe("周敏在西安", aggregation_strategy="first", ignore_labels=["PER"])
    assert [entity["entity_group"] for entity in groups] == ["O", "LOC"]


# --- long texts and batches -----------------------------------------------------------------------

SENTENCES = ("周敏住在西安。", "𠀋𠀍村的雨下了一天。", "赵小兰  去了 Sunny 咖啡馆。\n")
NAMES = {"周敏": "B-PER", "西安": "B-LOC", "𠀋𠀍": "B-LOC", "赵小兰": "I-PER", "Sunny": "PER"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_windows_change_no_entity(label, strategy):
    text = "".join(SENTENCES) * 40
    pipe = label(NAMES)
    expected = [
        {**entity, "start": entity["start"] + start, "end": entity["end"] + start}
        for start in range(0, len(text), len("".join(SENTENCES)))
        for entity in pipe("".join(SENTENCES), aggregation_strategy=strategy)
    ]
    for stride in (0, 7, 300):
        entities = pipe(text, aggregation_strategy=strategy, stride=stride)
        assert [{**e, "index": 0} for e in entities] == [{**e, "index": 0} for e in expected]


def test_each_token_is_judged_where_it_has_most_context(label):
    text = "".join(SENTENCES) * 40

    def wrong_near_the_edges(input_ids):
        logits = torch.zeros(*input_ids.shape, len(LABELS))
        logits[..., 0] = 5
        logits[:, 11:-11] = 0
        logits[:, 11:-11, 5] = 5
        return logits

    pipe = label(wrong_near_the_edges)
    words = pipe(text, stride=21)
    # [CLS] and ten tokens at either end of the text have no other window to be right in.
    tokens = len(pipe.tokenizer(text)["input_ids"]) - 2
    first, last = words[0], words[-1]
    assert (first["index"], last["index"]) == (11, tokens - 10)
    assert "".join(word["word"] for word in words) == text[first["start"] : last["end"]]
    assert len(pipe(text, stride=19)) < len(words)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_change_no_entity(label, side):
    texts = ["".join(SENTENCES) * 40, *SENTENCES, "".join(SENTENCES)]
    pipe = label(NAMES)
    expected = [pipe(text, aggregation_strategy="first") for text in texts]
    assert [len(entities) for entities in expected] == [200, 2, 1, 2, 5]
    pipe.tokenizer.padding_side = side
    together = pipe(texts, aggregation_strategy="first", batch_size=3)
    pipe.tokenizer.padding_side = "right"
    assert together == expected


def test_given_words_are_judged_as_they_are(label):
    words = ["周敏", "住", "在", "西安", "城", "𠀋𠀍村"]
    pipe = label({"周": "PER", "西安": "PER", "村": "PER"})
    text = " ".join(words)
    entities = pipe([words], is_split_into_words=True, aggregation_strategy="first")[0]
    check(entities, text)
    assert [entity["word"] for entity in entities] == ["周敏", "西安"]
    options = {"is_split_into_words": True, "aggregation_strategy": "first"}
    always = type(pipe)(model=pipe.model, tokenizer=pipe.tokenizer, **options)
    assert always([words]) == always(each for each in [words]) == [entities]
    assert always(text, is_split_into_words=False) == pipe(text, aggregation_strategy="first")
    entities = pipe([words], is_split_into_words=True, aggregation_strategy="max", delimiter="")
    check(entities[0], "".join(words))
    assert [entity["word"] for entity in entities[0]] == ["周敏", "西安", "𠀋𠀍村"]


def test_blank_texts_have_no_entities_and_leave_the_others_theirs(label):
    pipe = label(NAMES)
    texts = ["", "周敏在西安", " \n"]
    for options in ({}, {"batch_size": 2}, {"aggregation_strategy": "first"}):
        assert pipe(texts, **options) == [[], *pipe(texts[1:2], **options), []]
    assert pipe([["", " "]], is_split_into_words=True) == [[]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (["周敏", None], {}, "a text to label must be a str"),
        ("周敏\ud83d", {}, r"a text to label holds '\\ud83d', an unpaired surrogate"),
        ([], {}, "At least one input is required"),
        ("周敏", {"is_split_into_words": True}, "a text to label must be a list"),
        ("周敏", {"stride": 510}, "stride 510 must be at least 0 and less than 510"),
        ("周敏", {"aggregation_strategy": "last"}, "last is not a valid AggregationStrategy"),
    ],
)
def test_what_cannot_be_labeled_is_refused(label, text, options, message):
    with pytest.raises(ValueError, match=message):
        label(NAMES)(text, **options)


def test_only_words_need_the_segmenter(label, monkeypatch):
    pipe = label(NAMES)
    monkeypatch.setitem(sys.modules, "rjieba", None)
    message = 'needs rjieba: pip install rjieba opencc.* choose .* "simple" or "none"'
    for strategy in ("first", "max", "average"):
        with pytest.raises(ImportError, match=message):
            pipe("周敏", aggregation_strategy=strategy)
    for strategy in ("none", "simple"):
        assert pipe("周敏", aggregation_strategy=strategy)[0]["start"] == 0


# --- spans ----------------------------------------------------------------------------------------


def test_groups_meet_at_borders_only():
    spans = [(0, 1), (1, 2), (1, 2), (2, 4), (4, 5)]
    firsts, merged = group_spans(spans, {0, 1, 2, 3, 4})
    assert firsts.tolist() == [0, 1, 3, 4]
    assert merged.tolist() == [[0, 1], [1, 2], [2, 4], [4, 5]]
    firsts, merged = group_spans(spans, {0, 3, 4})
    assert firsts.tolist() == [0, 4] and merged.tolist() == [[0, 4], [4, 5]]


@pytest.mark.parametrize(
    ("tokens", "size", "overlap"), [(5, 8, 2), (8, 8, 7), (9, 8, 0), (50, 8, 3)]
)
def test_windows_cover_everything_and_overlap(tokens, size, overlap):
    windows = overlapping_windows(tokens, size, overlap)
    assert windows[0][0] == 0 and windows[-1][1] == tokens
    assert all(stop - start == min(size, tokens) for start, stop in windows)
    assert all(one[1] - other[0] >= overlap for one, other in itertools.pairwise(windows))
    assert len(windows) == max(1, -(-(tokens - overlap) // (size - overlap)))


def test_context_is_complete_at_the_ends_of_the_text():
    left, right = context_in_window(0, 3, 9)
    assert left.tolist() == [9, 9, 9] and right.tolist() == [2, 1, 0]
    left, right = context_in_window(6, 9, 9)
    assert left.tolist() == [0, 1, 2] and right.tolist() == [9, 9, 9]


def test_flags_are_characters_however_many_stand_in_a_row():
    flag, marks = "\U0001f1e8\U0001f1f3", "\u0301\u200d"
    for text in (flag * 3 + flag[0], flag + marks + flag, f"a{flag[0]}b", f"{marks}{flag}一\r\n"):
        assert character_starts(text) == {found.start() for found in regex.finditer(r"\X", text)}
