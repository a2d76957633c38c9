"""Fine-tuning: each kind of head learns a made-up task, and a run is a function of its seed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from made_up import made_up_splits, made_up_task
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from finetuning.heads import HEADS
from finetuning.models import Model
from finetuning.predict import Predictor, example_of, parse
from finetuning.spans import _encode_short, frame
from finetuning.training import Run, check_context, fit, outputs, save, train


def run_of(folder, head: str, **settings) -> Run:
    return Run(made_up_task(head, **settings), Model(f"random:{folder}", "tiny"), 0, 3e-3)


@pytest.mark.parametrize("head", HEADS)
def test_each_head_learns_a_made_up_task(tiny_folder, tmp_path, head):
    splits = made_up_splits(head, train=160, dev=40, test=40)
    run = run_of(tiny_folder, head)
    result = train(run, splits, tmp_path / "saved")
    assert result["scores"]["test"][run.task.metric] > 0.9
    assert result["history"][result["best_epoch"] - 1] == result["scores"]["dev"]
    assert [name for name, _ in result["predictions"]["test"]] == list(range(40))
    json.dumps(result)
    plain = [
        {
            key: example[key]
            for key in ("text", "text_pair", "question", "context", "choices")
            if key in example
        }
        for example in splits["test"].examples
    ]
    predictor = Predictor(tmp_path / "saved")
    found = [answer for _, answer in result["predictions"]["test"]]
    assert json.loads(json.dumps(predictor(plain))) == json.loads(json.dumps(found))
    if classes := HEADS[head].classes(HEADS[head].settings(run.task)):
        saved = HEADS[head].auto.from_pretrained(tmp_path / "saved", trust_remote_code=True)
        assert list(saved.config.id2label.values()) == classes
    with pytest.raises(ValueError, match=r"example 0: '.*' is missing or empty"):
        predictor([{}])
    assert list(predictor(iter(plain[:2]))) == list(predictor(plain[:2]))
    if head == "choices":
        for choices in ("超市", ["超市", None], ["超市", "\udcff"]):
            with pytest.raises(ValueError, match=r"example 0: 'choices' (must|is not text)"):
                predictor([plain[0] | {"choices": choices}])


def test_what_was_saved_predicts_as_in_its_run(tiny_folder, tmp_path):
    task = made_up_task("answers", longest_answer=300)
    model, tokenizer = Model(f"random:{tiny_folder}", "tiny").build(HEADS["answers"], None, 0)
    save(model, tokenizer, task, tmp_path)
    assert Predictor(tmp_path).task.longest_answer == 300


def test_a_model_with_another_head_begins_a_new_one(tiny_folder, tmp_path):
    random = Model(f"random:{tiny_folder}", "tiny")
    model, tokenizer = random.build(HEADS["tokens"], ["O", "B-x", "I-x"], 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = Model(str(tmp_path), "saved")
    again, _ = saved.build(HEADS["classification"], ["a", "b"], 0)
    assert again.classifier.weight.shape[0] == 2
    as_many, _ = saved.build(HEADS["classification"], ["a", "b", "c"], 1)
    assert not torch.equal(as_many.classifier.weight, model.classifier.weight)
    state, then = again.model.state_dict(), model.model.state_dict()
    assert all(torch.equal(weight, then[name]) for name, weight in state.items())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.\w+\.weight does not have the shape"):
        saved.build(HEADS["classification"], ["a", "b"], 0)


def test_an_encoder_of_which_weights_are_missing_is_refused(tiny_folder, tmp_path):
    """Such as those that torch.compile renamed."""
    model, _ = Model(f"random:{tiny_folder}", "tiny").build(HEADS["tokens"], ["O", "B-x"], 0)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", "_orig_mod."): each for name, each in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"\d+ weights of the encoder are not in its files"):
        Model(str(tmp_path), "renamed").build(HEADS["tokens"], ["O", "B-x"], 0)


def test_a_folder_without_its_task_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"task\.json is missing; name a folder"):
        Predictor(tmp_path)


def test_the_command_asks_as_its_options_say():
    ask = ["folder", "去哪里买？", "--context", "没有米了。"]
    assert example_of(parse(ask)) == {"question": "去哪里买？", "context": "没有米了。"}
    choose = {"text": "没有米了。", "text_pair": "去哪里买？", "choices": ["超市", "车站"]}
    assert example_of(parse([*ask, "--choices", "超市", "车站"])) == choose
    pair = ["folder", "没有米了。", "--pair", "去哪里买？", "--choices", "超市", "车站"]
    assert example_of(parse(pair)) == choose
    assert example_of(parse(["folder", "甲", "--pair", "乙"])) == {"text": "甲", "text_pair": "乙"}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT of transformers, whose tokenizer knows the made-up texts' characters."""
    folder = tmp_path_factory.mktemp("bert")
    splits = (made_up_splits(head, train=100)["train"] for head in HEADS)
    text = "".join(json.dumps(split.examples, ensure_ascii=False) for split in splits)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(text) - {" "})]
    (folder / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=len(entries), num_attention_heads=2, **size)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_another_encoder_of_transformers_takes_its_place(bert_folder, head):
    splits = made_up_splits(head, train=16, dev=4)
    run = Run(made_up_task(head, epochs=1), Model(str(bert_folder), "bert"), 0, 1e-3)
    result = train(run, splits)
    assert len(result["predictions"]["dev"]) == 4
    assert result["loss"] > 0
    assert not result["inexact"]["dev"]  # a token a character
    # The caches do not keep the tokenizer.
    assert frame.cache_info().currsize == _encode_short.cache_info().currsize == 0


def test_no_part_of_a_head_for_other_classes_is_kept(bert_folder, tmp_path):
    """RoBERTa's has two layers, of which the first fits any number of classes."""
    sizes = json.loads((bert_folder / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size")
    kept += ("num_attention_heads", "num_hidden_layers")
    config = RobertaConfig(num_labels=3, **{key: sizes[key] for key in kept})
    model = RobertaForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    other, _ = Model(str(tmp_path), "other").build(HEADS["classification"], ["a", "b"], 1)
    assert not torch.equal(other.classifier.dense.weight, model.classifier.dense.weight)
    assert torch.equal(
        other.roberta.embeddings.word_embeddings.weight,
        model.roberta.embeddings.word_embeddings.weight,
    )


def test_a_folder_that_told_classes_apart_learns_answers(bert_folder, tmp_path):
    model, tokenizer = Model(str(bert_folder), "bert").build(HEADS["tokens"], ["O", "B", "I"], 0)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer; put its files there"):
        Model(str(tmp_path), "saved").build(HEADS["answers"], None, 0)
    tokenizer.save_pretrained(tmp_path)
    model, _ = Model(str(tmp_path), "saved").build(HEADS["answers"], None, 0)
    assert model.qa_outputs.out_features == 2


@pytest.mark.parametrize("head", ["tokens", "answers"])
def test_a_tokenizer_that_pads_on_the_left_makes_no_difference(bert_folder, head):
    examples = made_up_splits(head, train=4)["train"].examples
    tokenizer = AutoTokenizer.from_pretrained(bert_folder, padding_side="left")
    settings = HEADS[head].settings(made_up_task(head))
    rows, _ = HEADS[head].features(examples, tokenizer, settings, training=False)
    shorter = [{key: value[:-2] for key, value in rows[0].items()}, rows[1]]
    batch = HEADS[head].collator_of(tokenizer)(shorter)
    assert batch["attention_mask"][0, 0] == 1


def test_a_folder_that_was_a_reranker_learns_classes(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "reranker")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    splits = made_up_splits("classification", train=8, dev=4)
    assert train(run_of(folder, "classification", epochs=1), splits)["loss"] > 0


def test_two_classes_in_dev_are_scored_although_there_are_three():
    examples = [{"label": "0"}, {"label": "1"}]
    found = [{"label": "2", "score": 0.9}, {"label": "1", "score": 0.9}]
    assert HEADS["classification"].score(examples, found) == {"accuracy": 0.5}


def test_what_was_fine_tuned_for_other_classes_begins_with_a_new_head(tiny_folder, tmp_path):
    head, random = HEADS["classification"], Model(f"random:{tiny_folder}", "tiny")
    model, tokenizer = random.build(head, ["a", "b"], 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        before = model.classifier.weight
        for classes, goes_on in ((["a", "b"], True), (["c", "d"], False)):
            after, _ = Model(str(tmp_path), "tuned").build(head, classes, 1)
            assert torch.equal(after.classifier.weight, before) == goes_on
            assert torch.equal(
                after.base_model.final_norm.weight, model.base_model.final_norm.weight
            )


def test_a_run_is_a_function_of_its_seed(tiny_folder):
    splits = made_up_splits("classification", train=32, dev=8)
    run = run_of(tiny_folder, "classification", epochs=1)
    first, again = (train(run, splits) for _ in range(2))
    other = train(Run(run.task, run.model, 1, run.learning_rate), splits)
    assert first["predictions"] == again["predictions"]
    assert first["predictions"] != other["predictions"]


def test_training_ends_when_dev_does_not_improve(tiny_folder):
    splits = made_up_splits("classification", train=16, dev=8)
    reports = []
    run = Run(
        made_up_task("classification", epochs=8, patience=1),
        Model(f"random:{tiny_folder}", "tiny"),
        0,
        1e-9,  # nothing changes, so no epoch is better than the first
    )
    result = train(run, splits, report=reports.append)
    assert len(result["history"]) == len(reports) == 2
    assert result["best_epoch"] == 1


def test_a_run_that_diverges_says_so_and_has_scores(tiny_folder):
    splits = made_up_splits("classification", train=16, dev=8)
    tiny = Model(f"random:{tiny_folder}", "tiny")
    result = train(Run(made_up_task("classification", epochs=2), tiny, 0, 1e38), splits)
    assert result["loss"] is None
    assert 0 <= result["scores"]["dev"]["accuracy"] <= 1


def test_batches_hold_texts_of_like_length_with_choices_too(tiny_folder):
    run = run_of(tiny_folder, "choices", epochs=1, batch_size=4)
    head = HEADS["choices"]
    model, tokenizer = run.model.build(head, None, 0)
    rows = [dict(tokenizer(["好" * n, "河" * n])) | {"labels": 0} for n in [5, 40] * 32]
    pad, widths = head.collator(tokenizer), []

    def collator(batch: list[dict]) -> dict:
        widths.append({len(row["input_ids"][0]) for row in batch})
        return pad(batch)

    fit(run, model, collator, rows, [])
    assert len(widths) == 16
    assert sum(len(batch) == 1 for batch in widths) >= 12


def test_a_run_may_be_compiled_for_batches_of_any_size(tiny_folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    run = dataclasses.replace(run_of(tiny_folder, "classification", epochs=1), compile=True)
    head = HEADS["classification"]
    model, tokenizer = run.model.build(head, ["a", "b"], 0)
    rows = [dict(tokenizer("好")) | {"labels": 0}] * 4
    fit(run, model, head.collator(tokenizer), rows, [])
    assert compiled and all(options == {"dynamic": True} for _, options in compiled)
    assert {module for module, _ in compiled} <= set(model.modules())


def test_outputs_do_not_depend_on_the_order_of_rows(tiny_folder):
    head = HEADS["classification"]
    model, tokenizer = Model(f"random:{tiny_folder}", "tiny").build(head, ["a", "b"], 0)
    rows = [dict(tokenizer("好" * n)) for n in (3, 400, 20)] * 9
    collator = head.collator(tokenizer)
    found = outputs(model, rows, collator, head.outputs)
    alone = [outputs(model, [row], collator, head.outputs)[0] for row in rows[:3]]
    # bf16 where the CPU has it: two digits.
    np.testing.assert_allclose(np.array(found[:3]), np.array(alone), atol=2e-2)
    assert len({len(row) for row in found}) == 1


def test_texts_that_are_cut_are_counted(tiny_folder):
    splits = made_up_splits("classification", train=16, dev=8)
    splits["dev"].examples[0]["text"] *= 20
    result = train(run_of(tiny_folder, "classification", epochs=1), splits)
    assert result["inexact"]["dev"] == {"text is cut": 1}


@pytest.mark.parametrize(
    ("folder", "answered"), [(None, {"dev": 8}), ("saved", {"dev": 8, "hidden": 3})]
)
def test_a_model_that_is_saved_answers_the_hidden_test(tiny_folder, tmp_path, folder, answered):
    splits = made_up_splits("classification", train=16, dev=8, hidden=3)
    for example in splits["hidden"].examples:
        example["label"] = None
    run = run_of(tiny_folder, "classification", epochs=1)
    result = train(run, splits, folder and tmp_path / folder)
    counts = {name: len(found) for name, found in result["predictions"].items()}
    assert counts == answered
    assert result["scores"].keys() == {"dev"}


def test_inputs_longer_than_the_context_are_refused(tiny_folder):
    with pytest.raises(
        ValueError, match="max_length 9000 is more than the model's context of 8192"
    ):
        train(run_of(tiny_folder, "classification", max_length=9000), {})


def test_the_tokenizer_knows_the_context_where_positions_say_too_much(bert_folder):
    model, tokenizer = Model(str(bert_folder), "bert").build(HEADS["answers"], None, 0)
    tokenizer.model_max_length = 510
    with pytest.raises(ValueError, match="the model's context of 510"):
        check_context(made_up_task("answers", max_length=512), model.config, tokenizer)
    model.config.max_position_embeddings = -1  # any length
    check_context(made_up_task("answers", max_length=500), model.config, tokenizer)


def test_answers_of_which_none_is_at_its_place_teach_nothing(tiny_folder):
    splits = made_up_splits("answers", train=4, dev=4)
    for example in splits["train"].examples:
        example["answers"] = [answer | {"start": None} for answer in example["answers"]]
    with pytest.raises(ValueError, match="no example of train can be learned from"):
        train(run_of(tiny_folder, "answers"), splits)


def test_weights_have_a_fingerprint_and_random_ones_their_own(tiny_folder, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    before = Model(str(tmp_path), "a").fingerprint()
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert before != Model(str(tmp_path), "a").fingerprint()
    (tmp_path / "config.json").write_text("{}")
    beside = Model(str(tmp_path), "a").fingerprint()
    (tmp_path / "config.json").write_text('{"hidden_act": "relu"}')
    assert beside != Model(str(tmp_path), "a").fingerprint()
    assert Model(f"random:{tiny_folder}", "a").fingerprint()
    assert Model("owner/model", "a").fingerprint() == ""
