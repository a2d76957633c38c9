"""Metrics: values that can be checked by hand, computed without a network."""

import evaluate
import pytest

from finetuning.metrics import (
    Accuracy,
    AnswerScores,
    BinaryF1AndAuc,
    EntityF1,
    character_tags,
)


def test_accuracy():
    metric = Accuracy(keep_in_memory=True)
    given = {"predictions": ["100", "101", "102"], "references": ["100", "102", "102"]}
    assert metric.compute(**given) == {"accuracy": 2 / 3}


def test_f1_and_auc_look_at_the_rarer_class():
    metric = BinaryF1AndAuc(keep_in_memory=True)
    references, scores = ["0", "0", "0", "1", "1"], [0.1, 0.6, 0.2, 0.5, 0.9]
    found = metric.compute(
        predictions=["0", "1", "0", "0", "1"], references=references, scores=scores
    )
    # Of 6 pairs of one "0" and one "1", only (0.6, 0.5) is in the wrong order.
    assert found == {"f1": pytest.approx(0.5), "auc": pytest.approx(5 / 6)}


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        BinaryF1AndAuc(keep_in_memory=True).compute(
            predictions=["0"], references=["0"], scores=[0.5]
        )


def test_an_entity_counts_if_its_span_and_its_label_are_right():
    gold = [[0, 2, "name"], [5, 9, "company"]], [[1, 3, "scene"]]
    # The first is right, the second too short, the third has the wrong label.
    found = [[0, 2, "name"], [5, 8, "company"]], [[1, 3, "address"]]
    scores = EntityF1(keep_in_memory=True).compute(
        predictions=[character_tags(10, entities) for entities in found],
        references=[character_tags(10, entities) for entities in gold],
    )
    of_all = {name: pytest.approx(1 / 3) for name in ("precision", "recall", "f1")}
    # One for name, 0 for company, scene and address.
    assert scores == of_all | {"macro_f1": pytest.approx(1 / 4)}


def test_neighbors_of_one_label_stay_two_entities():
    tags = character_tags(4, [[0, 2, "name"], [2, 4, "name"]])
    joined = character_tags(4, [[0, 4, "name"]])
    metric = EntityF1(keep_in_memory=True)
    assert metric.compute(predictions=[tags], references=[tags])["f1"] == 1
    assert metric.compute(predictions=[joined], references=[tags])["f1"] == 0


def test_entities_that_tags_cannot_show_are_refused():
    with pytest.raises(ValueError, match="overlaps"):
        character_tags(4, [[0, 2, "name"], [1, 3, "scene"]])
    with pytest.raises(ValueError, match="4 characters"):
        character_tags(4, [[2, 5, "name"]])


def test_answers_are_scored_by_the_rules_of_cmrc():
    scores = AnswerScores(keep_in_memory=True).compute(
        predictions=["《边城》", "南京市"], references=[["边城", "城"], ["南京"]]
    )
    assert scores == {"exact_match": 0.5, "f1": pytest.approx(0.9)}


def test_the_classes_combine():
    both = evaluate.combine([Accuracy(keep_in_memory=True)])
    assert both.compute(predictions=["1"], references=["1"]) == {"accuracy": 1.0}
