"""Weights by domain: how often documents are written, and how far their copies lie apart."""

import collections
import itertools

import pytest
from datatrove.data import Document

from corpora import many_texts, prepare, texts_of, write_corpus
from pretraining.data import weighting
from pretraining.data.weighting import WeightDocuments, copies, read_weights, unused_weights

TEXTS = many_texts(400)


@pytest.mark.parametrize(("weight", "least"), [(2.5, 2), (0.3, 0), (1, 1), (3.0, 3), (0, 0)])
def test_a_weight_is_the_mean_number_of_copies(weight, least):
    numbers = [copies(text, weight, seed=0) for text in TEXTS]
    assert set(numbers) == ({least} if weight == least else {least, least + 1})
    assert sum(numbers) / len(TEXTS) == pytest.approx(weight, abs=0.075)  # 3 standard deviations


def test_a_larger_weight_keeps_the_documents_of_a_smaller_one():
    assert all(
        copies(text, 0.3, 0) <= copies(text, 0.6, 0) <= copies(text, 1.2, 0) for text in TEXTS
    )


def test_rows_and_manifest_have_the_domains_by_their_weights(tmp_path):
    for domain, texts in (("news", TEXTS[:10]), ("law", TEXTS[10:40]), ("story", TEXTS[40:50])):
        write_corpus(tmp_path / f"{domain}.jsonl", texts, domain=domain, script="hans")
    weights = {"news": 2.5, "law": 0.3}
    manifest = prepare(tmp_path, tmp_path / "rows", seq_len=512, weights=weights, seed=7)
    expected = collections.Counter(
        {text: copies(text, 2.5, seed=7) for text in TEXTS[:10]}
        | {text: copies(text, 0.3, seed=7) for text in TEXTS[10:40]}
        | dict.fromkeys(TEXTS[40:50], 1)
    )
    assert texts_of(tmp_path / "rows") == +expected
    counts = {name: each["documents"] for name, each in manifest["domains"].items()}
    assert counts["news (hans)"] == sum(expected[text] for text in TEXTS[:10])
    assert counts["law (hans)"] == sum(expected[text] for text in TEXTS[10:40])
    assert counts["story (hans)"] == 10
    assert manifest["dropped"] == {"weights": 30 - counts["law (hans)"]}
    assert (manifest["weights"], manifest["seed"]) == (weights, 7)


def test_copies_are_numbered_and_lie_apart(monkeypatch):
    monkeypatch.setattr(weighting, "WAITING", 20)
    documents = [Document(text, text, metadata={"domain": "news"}) for text in TEXTS[:100]]
    places, number = collections.defaultdict(list), collections.defaultdict(list)
    for place, document in enumerate(WeightDocuments({"news": 3}, seed=0).run(iter(documents))):
        places[document.id].append(place)
        number[document.id].append(document.metadata.get("copy", 0))
    assert set(map(tuple, number.values())) == {(0, 1, 2)}
    assert min(b - a for each in places.values() for a, b in itertools.pairwise(each)) >= 10


def test_weights_of_domains_that_no_document_has_are_named(tmp_path):
    write_corpus(tmp_path / "a.jsonl", TEXTS[:3], domain="news", script="hans")
    weights = {"news": 2.0, "novel": 2.0, "letters": 0.0}
    assert unused_weights(prepare(tmp_path, tmp_path / "rows", weights=weights)) == ["novel"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("news: many", r"news: the weight 'many' is not a number from 0 up"),
        ("news: -1", r"news: the weight -1 is not"),
        ("news: .inf", r"news: the weight inf is not"),
        ("news: true", r"news: the weight True is not"),
        ("2024: 1.5", r"domain 2024: not a text"),
        ("- news", r"keys and values expected, such as `news"),
        ("news: {", r"not YAML"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, content, message):
    (tmp_path / "weights.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"weights\.yaml: {message}"):
        read_weights(tmp_path / "weights.yaml")


def test_a_file_names_domains_and_their_weights(tmp_path):
    (tmp_path / "weights.yaml").write_text("news: 2.5\nlaw: 0\n", encoding="utf-8")
    assert read_weights(tmp_path / "weights.yaml") == {"news": 2.5, "law": 0.0}
    assert read_weights(None) == {}
