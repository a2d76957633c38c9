"""Fine-tuning heads: what they pool, what they lose, and that accumulation changes nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from batches import PORTABLE_BACKENDS, documents, flatten, pack_rows, pad_rows, real_tokens
from modeling_chinese_modernbert import (
    ChineseModernBertForMaskedLM,
    ChineseModernBertForMultipleChoice,
    ChineseModernBertForQuestionAnswering,
    ChineseModernBertForSequenceClassification,
    ChineseModernBertForTokenClassification,
)
from modernbert import WITH_BIASES

# Logits are sums of 32 products of size one: as exact as the states.
TOLERANCE = 1e-5

LENGTHS = (90, 1, 140, 33)


@pytest.fixture
def make_head(make_model):
    """Returns `make_head(cls, backend, **config)`: a model in eval mode with lively heads."""

    def build(cls, backend="sdpa", **config):
        return make_model(backend, cls, **({"num_labels": 3} | config))

    return build


# --- pooling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PORTABLE_BACKENDS)
@pytest.mark.parametrize(
    "settings",
    [{"classifier_pooling": "mean"}, {"classifier_pooling": "cls"}, WITH_BIASES],
    ids=["mean", "cls", "LayerNorm and biases"],
)
def test_a_document_is_judged_alike_in_every_presentation(make_head, backend, settings):
    model = make_head(ChineseModernBertForSequenceClassification, backend, **settings)
    docs = documents(*LENGTHS)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=doc[None]).logits for doc in docs])
        for batch in (
            pad_rows(docs, "right"),
            pad_rows(docs, "left"),
            pad_rows(docs, "left", width=200),
            pack_rows(docs[:2], docs[2:], width=190),
            flatten(docs),
        ):
            logits = model(**batch).logits
            assert logits.shape == (4, 3)
            assert (logits - alone).abs().max() <= TOLERANCE
    assert (alone[0] - alone[2]).abs().max() > 0.01  # the documents do differ


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_is_what_its_name_says(make_head, pooling):
    model = make_head(ChineseModernBertForSequenceClassification, classifier_pooling=pooling)
    (doc,) = documents(70)
    with torch.no_grad():
        states = model.model(input_ids=doc[None]).last_hidden_state[0]
        pooled = states.mean(0) if pooling == "mean" else states[0]
        expected = model.classifier(model.head(pooled))
        assert (model(input_ids=doc[None]).logits[0] - expected).abs().max() <= TOLERANCE


def test_multiple_choice_is_one_judgement_a_choice(make_head):
    model = make_head(ChineseModernBertForMultipleChoice)
    batch = pad_rows(documents(*LENGTHS), "left")
    with torch.no_grad():
        one_by_one = [model(input_ids=doc[None, None]).logits for doc in documents(*LENGTHS)]
        folded = {name: value.view(2, 2, -1) for name, value in batch.items()}
        logits = model(**folded).logits
        embedded = model(
            inputs_embeds=model.get_input_embeddings()(folded["input_ids"]),
            attention_mask=folded["attention_mask"],
        ).logits
    assert logits.shape == (2, 2)
    assert (logits.flatten() - torch.cat(one_by_one).flatten()).abs().max() <= TOLERANCE
    assert (embedded - logits).abs().max() <= TOLERANCE


def test_rows_of_several_documents_have_one_choice_and_one_answer(make_head):
    flat = {"input_ids": torch.cat(documents(9, 7))[None], "position_ids": torch.arange(16)[None]}
    flat["position_ids"][0, 9:] -= 9
    choices = {name: value[None] for name, value in flat.items()}
    with pytest.raises(ValueError, match="padded rows in which a choice is a document"):
        make_head(ChineseModernBertForMultipleChoice)(**choices)
    two = torch.tensor([1, 12])
    with pytest.raises(ValueError, match="2 positions of answers for 1 rows"):
        make_head(ChineseModernBertForQuestionAnswering)(
            **flat, start_positions=two, end_positions=two
        )


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_amount_of_padding_changes_no_answer(make_head, side):
    model = make_head(ChineseModernBertForQuestionAnswering)
    docs = documents(60, 45)
    losses = []
    for width in (60, 100):
        batch = pad_rows(docs, side, width)
        shift = batch["attention_mask"].argmax(1)
        with torch.no_grad():
            outputs = model(
                **batch,
                start_positions=torch.tensor([3, 9]) + shift,
                end_positions=torch.tensor([8, 9]) + shift,
            )
        losses.append(outputs.loss)
        for logits in (outputs.start_logits, outputs.end_logits):
            probability = logits.softmax(-1)
            assert (probability[~real_tokens(batch)] == 0).all()
    assert (losses[0] - losses[1]).abs() <= TOLERANCE


# --- losses -------------------------------------------------------------------------------------

BINARY = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
DOCUMENT_LOSSES = {
    "classes": (3, torch.tensor([0, 2, 1, 1]), "single_label_classification", F.cross_entropy),
    "several labels": (
        3,
        BINARY,
        "multi_label_classification",
        F.binary_cross_entropy_with_logits,
    ),
    "one number": (1, torch.tensor([0.5, -1.0, 2.0, 0.0]), "regression", F.mse_loss),
    "several numbers": (3, BINARY * 1.5, "regression", F.mse_loss),
}


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem", "reference"), DOCUMENT_LOSSES.values(), ids=DOCUMENT_LOSSES
)
def test_document_losses_are_torchs_own(make_head, num_labels, labels, problem, reference):
    model = make_head(ChineseModernBertForSequenceClassification, num_labels=num_labels)
    if problem == "regression" and num_labels > 1:
        model.config.problem_type = problem  # three numbers cannot be told from three labels
    outputs = model(**pad_rows(documents(*LENGTHS), "left"), labels=labels)
    assert model.config.problem_type == problem
    logits = outputs.logits.squeeze(-1) if num_labels == 1 else outputs.logits
    assert outputs.loss.item() == pytest.approx(reference(logits, labels).item(), rel=1e-6)


def test_labels_that_are_refused_decide_nothing(make_head):
    model = make_head(ChineseModernBertForSequenceClassification, num_labels=3)
    batch = pad_rows(documents(*LENGTHS))
    with pytest.raises(ValueError, match=r"labels has shape \(4,\).*for multi_label"):
        model(**batch, labels=torch.zeros(4))
    assert model(**batch, labels=torch.zeros(4).long()).loss > 0


def test_an_unknown_problem_type_is_refused(make_head):
    model = make_head(ChineseModernBertForSequenceClassification)
    vars(model.config)["problem_type"] = "mse"  # transformers 5.17 refuses it in a configuration
    with pytest.raises(ValueError, match=r"problem_type 'mse' is unknown; set regression, "):
        model(**pad_rows(documents(*LENGTHS)), labels=BINARY)


def test_multi_label_takes_integers_when_told(make_head):
    model = make_head(
        ChineseModernBertForSequenceClassification, problem_type="multi_label_classification"
    )
    batch = pad_rows(documents(*LENGTHS))
    assert model(**batch, labels=BINARY.long()).loss == model(**batch, labels=BINARY).loss


def test_token_labels_of_minus_100_count_for_nothing(make_head):
    model = make_head(ChineseModernBertForTokenClassification)
    batch = pad_rows(documents(*LENGTHS), "left")
    labels = batch["input_ids"] % 3
    labels[~real_tokens(batch)] = -100
    labels[:, ::2] = -100
    outputs = model(**batch, labels=labels)
    kept = labels != -100
    expected = F.cross_entropy(outputs.logits[kept], labels[kept])
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = model(**batch, labels=torch.full_like(labels, -100)).loss
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_answers_outside_the_sequence_are_ignored(make_head):
    model = make_head(ChineseModernBertForQuestionAnswering)
    batch = pad_rows(documents(30, 20))
    inside = {name: value[:1] for name, value in batch.items()}
    first, last = torch.tensor([4, 99]), torch.tensor([7, 30])
    both = model(**batch, start_positions=first, end_positions=last).loss
    one = model(**inside, start_positions=first[:1], end_positions=last[:1]).loss
    assert (both - one).abs() <= TOLERANCE
    outside = torch.tensor([99, 99])
    assert model(**batch, start_positions=outside, end_positions=outside).loss == 0


def test_answers_in_the_padding_are_ignored(make_head):
    model = make_head(ChineseModernBertForQuestionAnswering)
    batch = pad_rows(documents(30, 20), side="left")
    first, last = torch.tensor([4, 0]), torch.tensor([7, 0])
    inside = {name: value[:1] for name, value in batch.items()}
    both = model(**batch, start_positions=first, end_positions=last).loss
    one = model(**inside, start_positions=first[:1], end_positions=last[:1]).loss
    assert (both - one).abs() <= TOLERANCE


def test_a_model_that_has_diverged_does_not_look_perfect(make_head):
    model = make_head(ChineseModernBertForQuestionAnswering)
    torch.nn.init.constant_(model.classifier.bias, math.nan)
    answer = torch.tensor([4, 5])
    assert model(
        **pad_rows(documents(30, 20)), start_positions=answer, end_positions=answer
    ).loss.isnan()


# --- gradient accumulation -----------------------------------------------------------------------


def examples(cls, count=8):
    """`count` training examples of unequal lengths for a head."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index, doc in enumerate(documents(*range(12, 12 + 3 * count, 3), seed=5)):
        row = {"input_ids": doc, "attention_mask": torch.ones_like(doc)}
        if cls is ChineseModernBertForQuestionAnswering:
            row |= {
                "start_positions": torch.tensor(index),
                "end_positions": torch.tensor(index + 2),
            }
        elif cls in (ChineseModernBertForTokenClassification, ChineseModernBertForMaskedLM):
            shown = torch.rand(len(doc), generator=generator) < 0.4
            row["labels"] = torch.where(shown, doc % 3, -100)
        elif cls is ChineseModernBertForMultipleChoice:
            row = {name: torch.stack((value, value.flip(0))) for name, value in row.items()}
            row["labels"] = torch.tensor(index % 2)
        else:
            row["labels"] = torch.tensor(index % 3)
        rows.append(row)
    return rows


def collate(rows):
    width = max(row["input_ids"].shape[-1] for row in rows)
    batch = {}
    for name in rows[0]:
        filler = -100 if name == "labels" else 0
        batch[name] = torch.stack(
            [
                F.pad(row[name], (0, width - row[name].shape[-1]), value=filler)
                if row[name].dim()
                else row[name]
                for row in rows
            ]
        )
    return batch


@pytest.mark.parametrize(
    "cls",
    [
        ChineseModernBertForMaskedLM,
        ChineseModernBertForSequenceClassification,
        ChineseModernBertForTokenClassification,
        ChineseModernBertForQuestionAnswering,
        ChineseModernBertForMultipleChoice,
    ],
)
def test_accumulated_batches_train_like_one_large_batch(make_head, cls, tmp_path):
    weights, losses = [], []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = make_head(cls)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                learning_rate=0.1,
                optim="sgd",
                max_grad_norm=0.0,
                logging_steps=1,
                report_to=[],
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=examples(cls),
            data_collator=collate,
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses.append(trainer.state.log_history[0]["loss"])
    before = torch.cat([p.detach().flatten() for p in make_head(cls).parameters()])
    # What two ways of adding up the same sum may differ by, relative to the step itself.
    assert (weights[0] - weights[1]).abs().max() <= 1e-4 * (weights[0] - before).abs().max()
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


# --- input that does not fit ----------------------------------------------------------------------

IDS = torch.full((2, 6), 7)


@pytest.mark.parametrize(
    ("cls", "inputs", "message"),
    [
        (
            ChineseModernBertForSequenceClassification,
            {"attention_mask": torch.tensor([[1] * 6, [0] * 6])},
            "only 1 of the 2 rows hold a real token",
        ),
        (
            ChineseModernBertForSequenceClassification,
            dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 4, 4, 6])),
            "two numbers of cu_seq_lens_q are equal",
        ),
        (
            ChineseModernBertForSequenceClassification,
            {"labels": torch.tensor([0, 1, 2])},
            r"labels has shape \(3,\), but there are 2 documents and 3 labels",
        ),
        (
            ChineseModernBertForSequenceClassification,
            {"labels": torch.tensor([0.0, 1.0])},
            r"labels has shape \(2,\).*for multi_label_classification",
        ),
        (
            ChineseModernBertForTokenClassification,
            {"labels": torch.zeros(2, 5)},
            r"labels has shape \(2, 5\), expected \(2, 6\)",
        ),
        (
            ChineseModernBertForMultipleChoice,
            {},
            r"multiple choice takes input_ids \(batch, choices, sequence\).*got \(2, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make_head, cls, inputs, message):
    with pytest.raises(ValueError, match=message):
        make_head(cls)(input_ids=IDS[:1] if "cu_seq_lens_q" in inputs else IDS, **inputs)


def test_an_unknown_argument_is_refused(make_head):
    with pytest.raises(TypeError, match="token_type"):
        make_head(ChineseModernBertForTokenClassification)(input_ids=IDS, token_type=IDS)
