"""Question answering: exact spans, probabilities over all of them, contexts of any length."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from model_folders import ROOT
from modeling_chinese_modernbert import ChineseModernBertForQuestionAnswering
from question_answering_chinese_modernbert import ChineseModernBertQuestionAnsweringPipeline
from spans_chinese_modernbert import character_starts
from test_tokenizer import HOSTILE

TEXT = "昨天下午，三年级的同学在操场上放风筝。"
QUESTION = "谁在放风筝？"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)


@pytest.fixture
def qa(tiny_config, tokenizer):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer))
    model = ChineseModernBertForQuestionAnswering(config).eval()
    return ChineseModernBertQuestionAnsweringPipeline(model=model, tokenizer=tokenizer)


def test_the_answer_is_the_most_probable_span_of_the_context(qa, tokenizer):
    encoded = tokenizer(QUESTION, TEXT, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = qa.model(**encoded)
    context = [place for place, part in enumerate(encoded.sequence_ids(0)) if part == 1]
    spans = {
        (offsets[b][0], offsets[e][1]): (outputs.start_logits[0, b] + outputs.end_logits[0, e])
        for b in context
        for e in context
        if b <= e < b + 4
    }
    shares = torch.stack(list(spans.values())).softmax(0)
    expected = sorted(zip(shares.tolist(), spans, strict=True), reverse=True)[:3]
    answers = qa(question=QUESTION, context=TEXT, top_k=3, max_answer_len=4)
    assert [(answer["start"], answer["end"]) for answer in answers] == [
        span for _, span in expected
    ]
    assert [answer["score"] for answer in answers] == pytest.approx(
        [share for share, _ in expected], rel=1e-4
    )


# --- probabilities --------------------------------------------------------------------------------


def indifferent(qa):
    """Makes every first and every last token equally probable."""
    torch.nn.init.zeros_(qa.model.classifier.weight)
    return qa


@pytest.mark.parametrize(
    ("context", "answer", "share"),
    [
        # Pairs of a first and a last token that spell the answer, of all pairs: 𠮷 is four bytes.
        ("甲𠮷乙", "𠮷", 10 / 21),
        ("甲𠮷", "甲𠮷", 4 / 15),
        ("𠮷乙𠀋", "𠮷乙𠀋", 16 / 45),
        ("㐂", "㐂", 1),
        ("a\u0301b", "a\u0301", 6 / 10),
        ("春天", "春天", 1),
    ],
)
def test_a_score_is_a_probability_whatever_the_number_of_answers(qa, context, answer, share):
    everything = indifferent(qa)(question="谁？", context=context, top_k=100)
    assert sum(each["score"] for each in everything) == pytest.approx(1)
    assert len({(each["start"], each["end"]) for each in everything}) == len(everything)
    scores = {each["answer"]: each["score"] for each in everything}
    assert scores[answer] == pytest.approx(share)
    for top_k in range(2, len(everything) + 1):
        assert qa(question="谁？", context=context, top_k=top_k) == everything[:top_k]
    assert qa(question="谁？", context=context) == everything[0]


def brute_force(qa, tokenizer, context, windows, longest):
    """Sums and sorts by loops what the pipeline computes at once."""
    offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = offsets["input_ids"], offsets["offset_mapping"]
    question = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    borders = [*sorted(character_starts(context) & {start for start, _ in offsets}), len(context)]
    character = [sum(border <= start for border in borders) - 1 for start, _ in offsets]
    places = {}  # (first character, last character) -> (context in the window, logit)
    for start, stop in windows:
        before = [2, *question, 3]
        with torch.no_grad():
            outputs = qa.model(torch.tensor([[*before, *ids[start:stop], 3]]))
        pairs = {}
        for b in range(start, stop):
            for e in range(b, stop):
                if character[e] - character[b] < longest:
                    logit = (
                        outputs.start_logits[0, b - start + len(before)]
                        + outputs.end_logits[0, e - start + len(before)]
                    )
                    pairs.setdefault((character[b], character[e]), []).append((b, e, logit))
        for span, found in pairs.items():
            left = min(b for b, _, _ in found) - start if start else len(ids)
            right = stop - 1 - max(e for _, e, _ in found) if stop < len(ids) else len(ids)
            room = min(left, right)
            if room > places.get(span, (-1, 0))[0]:
                logit = torch.stack([logit for _, _, logit in found]).double().logsumexp(0)
                places[span] = (room, logit)
    shares = torch.stack([logit for _, logit in places.values()]).softmax(0).tolist()
    spans = [(borders[first], borders[last + 1]) for first, last in places]
    return sorted(zip(shares, spans, strict=True), reverse=True)


@pytest.mark.parametrize("longest", [1, 5, 30])
@pytest.mark.parametrize(
    ("size", "overlap", "windows"),
    [
        (38, 16, [(0, 38)]),
        (20, 8, [(0, 20), (12, 32), (18, 38)]),
        (20, 0, [(0, 20), (18, 38)]),
        (20, 15, [(0, 20), (5, 25), (10, 30), (15, 35), (18, 38)]),
    ],
)
def test_windows_and_bytes_are_summed_as_loops_would(
    qa, tokenizer, size, overlap, windows, longest
):
    context = "張𠮷田和𠀋𠀍村的同学👩‍👩‍👧在。"
    assert len(tokenizer(context, add_special_tokens=False)["input_ids"]) == 38
    expected = brute_force(qa, tokenizer, context, windows, longest)
    question = len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
    answers = qa(
        question=QUESTION,
        context=context,
        max_seq_len=size + question + 3,
        doc_stride=overlap,
        max_answer_len=longest,
        top_k=10_000,
    )
    assert len(answers) == len(expected)
    assert [a["score"] for a in answers] == pytest.approx([s for s, _ in expected], rel=1e-4)
    shares = {span: share for share, span in expected}
    for answer in answers:
        share = shares[answer["start"], answer["end"]]
        assert answer["score"] == pytest.approx(share, rel=1e-4)


def test_no_span_counts_twice_where_windows_overlap(qa):
    context = "春夏秋冬" * 20
    answers = indifferent(qa)(
        question=QUESTION,
        context=context,
        max_seq_len=48,
        doc_stride=20,
        max_answer_len=3,
        top_k=10_000,
    )
    scores = torch.tensor([answer["score"] for answer in answers])
    assert torch.allclose(scores, torch.full_like(scores, 1 / len(answers)))


def test_neighboring_windows_share_at_most_half_of_them(qa):
    inputs = {"question": QUESTION, "context": TEXT * 40}
    windows = [each["window"] for each in qa.preprocess(inputs, max_seq_len=64)]
    size = windows[0][1]
    shared = [before[1] - after[0] for before, after in itertools.pairwise(windows)]
    assert len(windows) > 3 and max(shared[:-1]) <= size // 2


def test_windows_are_as_long_as_both_model_and_tokenizer_allow(qa, tokenizer, monkeypatch):
    named = qa(question=QUESTION, context=TEXT * 4, top_k=10_000, max_seq_len=32, doc_stride=8)
    monkeypatch.setattr(tokenizer, "model_max_length", 32)
    assert qa(question=QUESTION, context=TEXT * 4, top_k=10_000, doc_stride=8) == named


@pytest.mark.parametrize("text", [text for text in HOSTILE.values() if text.strip()])
def test_no_answer_cuts_a_character(qa, text):
    borders = character_starts(text) | {len(text)}
    answers = qa(question=QUESTION, context=text, top_k=10_000, max_seq_len=20)
    assert answers
    for answer in answers:
        assert {answer["start"], answer["end"]} <= borders
        assert answer["answer"] == text[answer["start"] : answer["end"]] != ""


def test_no_answer_weighs_once_however_many_windows(qa):
    options = {"max_seq_len": 32, "doc_stride": 8, "handle_impossible_answer": True}
    answers = qa(question=QUESTION, context=TEXT * 4, top_k=10_000, **options)
    without = qa(question=QUESTION, context=TEXT * 4, top_k=10_000, max_seq_len=32, doc_stride=8)
    (none,) = (answer for answer in answers if not answer["answer"])
    assert (none["start"], none["end"]) == (0, 0)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    spans = [answer for answer in answers if answer["answer"]]
    assert [(a["start"], a["end"]) for a in spans] == [(a["start"], a["end"]) for a in without]
    for answer, other in zip(spans, without, strict=True):
        assert answer["score"] == pytest.approx(other["score"] * (1 - none["score"]))
    for top_k in (1, 2, 7):
        found = qa(question=QUESTION, context=TEXT * 4, top_k=top_k, **options)
        assert found == (answers[:top_k] if top_k > 1 else answers[0])


# --- windows and batches --------------------------------------------------------------------------


def test_a_long_context_is_read_to_its_end(qa):
    context = TEXT * 30
    answers = qa(question=QUESTION, context=context, max_seq_len=64, doc_stride=16, top_k=100_000)
    covered = {place for answer in answers for place in range(answer["start"], answer["end"])}
    assert covered == set(range(len(context)))
    assert all(a["answer"] == context[a["start"] : a["end"]] for a in answers)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_change_no_answer(qa, side):
    qa.tokenizer.padding_side = side
    questions, contexts = [QUESTION, "什么时候？"], [TEXT * 8, TEXT]
    one_by_one = [
        qa(question=question, context=context, max_seq_len=64)
        for question, context in zip(questions, contexts, strict=True)
    ]
    together = qa(question=questions, context=contexts, max_seq_len=64, batch_size=3)
    qa.tokenizer.padding_side = "right"
    for one, other in zip(one_by_one, together, strict=True):
        assert other["score"] == pytest.approx(one["score"], rel=1e-3)
        assert {**other, "score": 0} == {**one, "score": 0}


def test_no_answer_is_a_candidate_when_asked_for(qa):
    with torch.no_grad():
        qa.model.classifier.weight.zero_()  # every span is as likely as none
    answers = qa(question=QUESTION, context="春天", top_k=100, handle_impossible_answer=True)
    assert {"score", "start", "end", "answer"} == answers[0].keys()
    none = [answer for answer in answers if answer["answer"] == ""]
    assert len(none) == 1 and none[0]["score"] == pytest.approx(1 / len(answers))
    assert all(answer["answer"] for answer in qa(question=QUESTION, context="春天", top_k=100))


def test_questions_may_come_one_by_one(qa):
    asked = [{"question": QUESTION, "context": text} for text in (TEXT, "春天来了。")]
    expected = qa(asked)
    assert qa(tuple(asked)) == expected
    assert qa(Dataset.from_list(asked)) == expected
    assert list(qa(each for each in asked)) == expected
    assert qa(asked, top_k=None, max_seq_len=None) == expected  # as they are without
    with pytest.raises(ValueError, match="question must be a text that is not empty"):
        list(qa({**each, "question": " "} for each in asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": QUESTION}, "context must be a text that is not empty or blank, got None"),
        ({"question": " ", "context": TEXT}, "question must be a text that is not empty or blank"),
        (
            {"question": QUESTION * 20, "context": TEXT, "max_seq_len": 32},
            "leave no room for the context",
        ),
        ({"inputs": TEXT}, "question must be a text"),
        ({"question": QUESTION, "context": "水\ud83d"}, r"context holds '\\ud83d', an unpaired"),
        (
            {"question": QUESTION, "context": TEXT, "doc_stride": -1},
            "doc_stride must be at least 0, got -1",
        ),
        ({"question": QUESTION, "context": TEXT, "top_k": 0}, "top_k must be at least 1, got 0"),
        (
            {"question": QUESTION, "context": TEXT, "max_answer_len": 0},
            "max_answer_len must be at least 1, got 0",
        ),
        (
            {"question": QUESTION, "context": TEXT, "align_to_words": True},
            "align_to_words is unknown; there are doc_stride, handle_impossible_answer,",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(qa, asked, message):
    with pytest.raises(ValueError, match=message):
        qa(**asked)
