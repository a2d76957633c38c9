"""What transformers' pipelines do with a saved folder, its tokenizer included."""

import json
import textwrap

import pytest
import torch
from transformers import AutoTokenizer, FillMaskPipeline
from transformers.modeling_outputs import MaskedLMOutput

from model_folders import ROOT
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForMultipleChoice,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertModel,
)
from test_remote_code import in_fresh_process

TEXT = "張𠮷昨天下午，三年级的同学在操场上放风筝。"
QUESTION = "谁在放风筝？"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)


OURS = {
    ChineseModernBertForQuestionAnswering: ["question-answering"],
    ChineseModernBertForTokenClassification: ["ner", "token-classification"],
}
HEADS = (
    ChineseModernBertModel,
    ChineseModernBertForMaskedLM,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForMultipleChoice,
)

SCRIPT = """
    from transformers import AutoModelForMultipleChoice, AutoTokenizer, pipeline

    def opened(task, head, **options):
        return pipeline(task, model=f"{folder}/{head}", trust_remote_code=True, **options)

    def filled(task, head, text):
        pipe = opened(task, head)
        return [type(pipe.model).__name__, len(pipe(text))]

    told = {task: filled(task, *given) for task, given in TASKS.items()}

    pipe = opened("token-classification", "TokenClassification")
    pipe.save_pretrained(f"{folder}/TokenClassification_again")
    again = opened("ner", "TokenClassification_again")
    told["entities"] = [[type(p).__name__, p(TEXT, ignore_labels=[])] for p in (pipe, again)]

    words = opened("ner", "TokenClassification", aggregation_strategy="first", ignore_labels=[])
    told["groups"] = words(TEXT)

    pipe = opened("question-answering", "QuestionAnswering")
    pipe.save_pretrained(f"{folder}/QuestionAnswering_again")
    again = opened("question-answering", "QuestionAnswering_again")
    told["answers"] = [p(question=QUESTION, context=TEXT) for p in (pipe, again)]

    chosen = f"{folder}/MultipleChoice"
    tokenizer = AutoTokenizer.from_pretrained(chosen, trust_remote_code=True)
    model = AutoModelForMultipleChoice.from_pretrained(chosen, trust_remote_code=True)
    batch = tokenizer(["他渴了，", "他渴了，"], ["就去喝水。", "就去睡觉。"],
                      padding=True, return_tensors="pt")
    logits = model(**{name: value[None] for name, value in batch.items()}).logits
    told["choices"] = list(logits.shape)
    print(json.dumps(told))
"""
# task -> head, text, length of what comes back
TASKS = {
    "fill-mask": ("MaskedLM", "昨天下午[MASK]雨了。", 5),
    "text-classification": ("SequenceClassification", TEXT, 1),
    "feature-extraction": ("Model", TEXT, 1),
}


@pytest.fixture(scope="module")
def told(tiny_config, tokenizer, tmp_path_factory):
    """What a fresh process says that opens a folder of each head; it starts once for all tests."""
    tmp_path = tmp_path_factory.mktemp("folders")
    for cls in HEADS:
        torch.manual_seed(0)
        head = cls.__name__.removeprefix("ChineseModernBert").removeprefix("For")
        model = cls(tiny_config(vocab_size=len(tokenizer), num_labels=3))
        model.save_pretrained(tmp_path / head)
        tokenizer.save_pretrained(tmp_path / head)
    torch.save({"ids": None, "mask": None}, tmp_path / "io.pt")
    given = {task: (head, text) for task, (head, text, _) in TASKS.items()}
    names = f"TASKS, TEXT, QUESTION = {given!r}, {TEXT!r}, {QUESTION!r}\n"
    return in_fresh_process(names + textwrap.dedent(SCRIPT), tmp_path, tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_pipelines_of_transformers_open_the_folder(told, task):
    head, _, length = TASKS[task]
    model, found = told[task]
    assert model.endswith(head) and found == length


def test_token_classification_opens_under_both_names_and_saves_again(told):
    first, again = told["entities"]
    assert first == again
    name, found = first
    assert name == "ChineseModernBertTokenClassificationPipeline"
    assert [entity["word"] for entity in found[:3]] == ["張", "𠮷", "昨"]
    assert all(entity["word"] == TEXT[entity["start"] : entity["end"]] for entity in found)
    assert "".join(entity["word"] for entity in found) == TEXT
    assert "".join(group["word"] for group in told["groups"]) == TEXT
    assert all("entity_group" in group for group in told["groups"])


def test_question_answering_opens_and_saves_again(told):
    first, again = told["answers"]
    assert first == again
    assert first["answer"] == TEXT[first["start"] : first["end"]] != ""


def test_multiple_choice_opens_through_its_auto_class(told):
    assert told["choices"] == [1, 2]


def test_a_filled_mask_cuts_no_neighbor(tiny_config, tokenizer):
    """A byte that completes no character leaves the bytes of the next one whole."""
    model = ChineseModernBertForMaskedLM(tiny_config(vocab_size=len(tokenizer)))
    logits = torch.zeros(len(tokenizer))
    for rank, token in enumerate(("好", "<0xB7>", "<0xE5>", "<0xF0>")):
        logits[tokenizer.convert_tokens_to_ids(token)] = rank + 9.0
    model.forward = lambda input_ids, **_: MaskedLMOutput(
        logits=logits.expand(*input_ids.shape, -1)
    )
    fill = FillMaskPipeline(model=model, tokenizer=tokenizer)
    for text in ("張[MASK]𠮷田", "𠮷[MASK]𠮷", "[MASK]𠀋𠀍村", "𠮷👍🏽[MASK]"):
        sequences = [answer["sequence"] for answer in fill(text, top_k=4)]
        filled = [text.replace("[MASK]", answer) for answer in ("\ufffd", "好")]
        assert sequences == [filled[0]] * 3 + [filled[1]]


# --- what the configuration says of pipelines -----------------------------------------------------


@pytest.mark.parametrize("cls", HEADS)
def test_each_head_names_its_own_pipelines(tiny_config, tmp_path, cls):
    for source in (None, *OURS):
        config = tiny_config() if source is None else source(tiny_config()).config
        before = config.to_dict()
        model = cls(config)
        assert config.to_dict() == before
        assert sorted(getattr(model.config, "custom_pipelines", {})) == OURS.get(cls, [])
        assert model.base_model.config is model.config
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert list(saved.get("custom_pipelines", {})) == OURS.get(cls, [])
        again = cls.from_pretrained(tmp_path).config
        assert sorted(getattr(again, "custom_pipelines", {})) == OURS.get(cls, [])


def test_pipelines_of_others_stay(tiny_config):
    theirs = {"proofreading": {"impl": "proofreading.Pipeline", "pt": ["AutoModelForMaskedLM"]}}
    config = tiny_config(custom_pipelines=theirs)
    assert ChineseModernBertForMaskedLM(config).config.custom_pipelines == theirs
    model = ChineseModernBertForQuestionAnswering(config)
    assert model.model.config is model.config  # what is set on one is set on the other
    both = model.config.custom_pipelines
    assert list(both) == ["proofreading", "question-answering"]
    assert (
        ChineseModernBertModel(tiny_config(custom_pipelines=both)).config.custom_pipelines == theirs
    )
