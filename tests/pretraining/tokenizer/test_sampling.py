"""Sampling by domain and script, weights by domain."""

import itertools
import random

import pytest

from pretraining.data.corpus import Document
from pretraining.tokenizer.sampling import Sample, check_domains, script_of, share
from pretraining.tokenizer.training import marked_texts


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("今天的雨下得很大，地铁站里挤满了人。", "hans"),
        ("圖書館週末開放至晚上九點，歡迎借閱。", "hant"),
        ("佢哋喺度傾偈，唔知幾時先走。", "yue"),
        ("佢哋喺度倾偈，唔知几时先走。", "yue"),
        ("後天下雨，这本书里只有一个繁体字，剩下的都是简体字。", "hans"),
        ("Nothing Chinese here.", "hans"),
        ("", "hans"),
    ],
)
def test_the_script_of_a_text(text, script):
    assert script_of(text) == script


def document(number: int, domain: str = "news", script: str = "hans") -> Document:
    return Document(f"第{number:03d}篇短文。", domain, script, number)


def sampled(documents, budget=400, seed=0) -> dict[tuple[str, str], list[str]]:
    sample = Sample(budget, seed)
    for each in documents:
        sample.add(each)
    return dict(sample.strata())


def test_every_stratum_has_a_budget_of_its_own():
    documents = [document(n) for n in range(200)]
    documents += [document(n, "law") for n in range(20)]
    documents += [document(n, "law", "hant") for n in range(200)]
    strata = sampled(documents)
    sizes = {key: sum(map(len, texts)) for key, texts in strata.items()}
    length = len(documents[0].text)
    assert sizes[("law", "hans")] == 20 * length
    assert 400 <= sizes[("news", "hans")] < 400 + length
    assert 400 <= sizes[("law", "hant")] < 400 + length


def test_a_script_that_the_corpus_does_not_name_is_told_from_the_text():
    texts = ["圖書館週末開放。", "图书馆周末开放。"]
    strata = sampled(Document(text, "news", "unknown", 1) for text in texts)
    assert strata == {("news", "hant"): [texts[0]], ("news", "hans"): [texts[1]]}


def test_the_sample_depends_on_texts_and_seed_alone():
    documents = [document(n) for n in range(200)]
    shuffled = random.Random(1).sample(documents, len(documents))
    assert sampled(documents) == sampled(shuffled)
    assert sampled(documents) != sampled(documents, seed=1)


def test_a_share_of_texts_is_nested_and_about_as_large_as_asked():
    texts = [document(n).text for n in range(2_000)]
    parts = [share(texts, part, seed=0) for part in (0.0, 0.1, 0.5, 1.0)]
    assert [len(part) / 2_000 for part in parts] == pytest.approx([0, 0.1, 0.5, 1], abs=0.03)
    assert all(set(less) < set(more) for less, more in itertools.pairwise(parts))


@pytest.mark.parametrize("budget", [4_500, 10**6])
def test_a_weight_is_as_large_as_asked_of_a_domain_that_was_cut_too(budget):
    """What the sample keeps of it are the texts with the lowest hashes."""
    sample = Sample(budget, seed=0)
    for number in range(2_000):
        sample.add(document(number, script="hant"))
    ((_, kept),) = sample.strata()
    assert (len(kept) < 600) is (budget < 10**6)
    share_of_eight = 0.3 / 8 if budget == 10**6 else 0.3  # a small domain is repeated eight times
    shown = marked_texts(sample, 0, {"news": share_of_eight})
    assert len(shown) / len(kept) == pytest.approx(0.3, abs=0.05)


def test_a_weight_of_a_domain_that_is_not_there_is_refused():
    check_domains({"news": 2}, {"law", "news"})
    with pytest.raises(ValueError, match=r"weights for new, but .* it has law, news"):
        check_domains({"new": 2}, {"law", "news"})
