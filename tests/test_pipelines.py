"""What transformers' pipelines do with a saved folder, its tokenizer included."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForMultipleChoice,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertModel,
)
from question_answering_chinese_modernbert import ChineseModernBertQuestionAnsweringPipeline
from test_remote_code import in_fresh_process

TEXT = "昨天下午，三年级的同学在操场上放风筝。"
QUESTION = "谁在放风筝？"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(".", trust_remote_code=True)


@pytest.fixture
def folder(tiny_config, tokenizer, tmp_path):
    """Returns `folder(cls, **config)`: a saved model of that class, with the real tokenizer."""

    def save(cls, **config):
        torch.manual_seed(0)
        model = cls(tiny_config(vocab_size=len(tokenizer), num_labels=3, **config))
        model.save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
        torch.save({"ids": None, "mask": None}, tmp_path / "io.pt")
        return tmp_path / "saved"

    return save


TASKS = {
    "fill-mask": (ChineseModernBertForMaskedLM, "昨天下午[MASK]雨了。", 5),
    "text-classification": (ChineseModernBertForSequenceClassification, TEXT, 1),
    "feature-extraction": (ChineseModernBertModel, TEXT, 1),
}


@pytest.mark.parametrize("task", TASKS)
def test_pipelines_open_the_folder_in_a_fresh_process(folder, task, tmp_path):
    cls, text, answers = TASKS[task]
    script = f"""
        from transformers import pipeline
        pipe = pipeline({task!r}, model=folder, trust_remote_code=True)
        print(json.dumps([type(pipe.model).__name__, len(pipe({text!r}))]))
    """
    assert in_fresh_process(script, folder(cls), tmp_path) == [cls.__name__, answers]


def test_token_classification_gives_exact_spans(folder, tmp_path):
    script = f"""
        from transformers import pipeline
        pipe = pipeline("token-classification", model=folder, trust_remote_code=True)
        print(json.dumps([[x["word"], x["start"], x["end"]] for x in pipe({TEXT!r})]))
    """
    found = in_fresh_process(script, folder(ChineseModernBertForTokenClassification), tmp_path)
    assert found and "".join(TEXT[start:end] for _, start, end in found) == TEXT
    assert all(word == TEXT[start:end] for word, start, end in found)


def test_question_answering_opens_in_a_fresh_process_and_saves_again(folder, tmp_path):
    script = f"""
        from transformers import pipeline
        ask = dict(question={QUESTION!r}, context={TEXT!r})
        pipe = pipeline("question-answering", model=folder, trust_remote_code=True)
        pipe.save_pretrained(folder + "_again")
        again = pipeline("question-answering", model=folder + "_again", trust_remote_code=True)
        print(json.dumps([pipe(**ask), again(**ask)]))
    """
    first, again = in_fresh_process(script, folder(ChineseModernBertForQuestionAnswering), tmp_path)
    assert first == again
    assert first["answer"] == TEXT[first["start"] : first["end"]] != ""


def test_multiple_choice_opens_through_its_auto_class(folder, tmp_path):
    script = """
        from transformers import AutoModelForMultipleChoice, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=True)
        batch = tokenizer(["他渴了，", "他渴了，"], ["就去喝水。", "就去睡觉。"],
                          padding=True, return_tensors="pt")
        logits = model(**{name: value[None] for name, value in batch.items()}).logits
        print(json.dumps(list(logits.shape)))
    """
    assert in_fresh_process(script, folder(ChineseModernBertForMultipleChoice), tmp_path) == [1, 2]


# --- question answering ---------------------------------------------------------------------------


@pytest.fixture
def qa(tiny_config, tokenizer):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer))
    model = ChineseModernBertForQuestionAnswering(config).eval()
    return ChineseModernBertQuestionAnsweringPipeline(model=model, tokenizer=tokenizer)


def test_the_answer_is_the_likeliest_span_of_the_context(qa, tokenizer):
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


def test_a_long_context_is_read_to_its_end(qa):
    context = TEXT * 30
    answers = qa(question=QUESTION, context=context, max_seq_len=64, doc_stride=16, top_k=100_000)
    covered = {place for answer in answers for place in range(answer["start"], answer["end"])}
    assert covered == set(range(len(context)))
    assert all(a["answer"] == context[a["start"] : a["end"]] for a in answers)
    assert sum(answer["score"] for answer in answers) <= 1 + 1e-4


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


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": QUESTION}, "context must be a text that is not empty: None"),
        ({"question": " ", "context": TEXT}, "question must be a text that is not empty"),
        (
            {"question": QUESTION * 20, "context": TEXT, "max_seq_len": 32},
            "leave no room for the context",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(qa, asked, message):
    with pytest.raises(ValueError, match=message):
        qa(**asked)


def test_only_the_question_answering_folder_names_the_pipeline(folder):
    qa_folder = folder(ChineseModernBertForQuestionAnswering)
    assert "custom_pipelines" in json.loads((qa_folder / "config.json").read_text())
    other = folder(ChineseModernBertForTokenClassification)
    assert "custom_pipelines" not in json.loads((other / "config.json").read_text())
