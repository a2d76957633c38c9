"""Filters: what they take out, and files that name them."""

import pytest

from corpora import ROOT, TEXTS, many_texts, prepare, texts_of, write_corpus
from pretraining.data.filters import allow_open_files, read_filters
from pretraining.data.rows import RowsError


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def test_every_filter_takes_out_its_own(tmp_path):
    texts = many_texts(12)
    near = texts[0].replace("。", "！", 1)  # punctuation is not what MinHash looks at
    write_corpus(
        tmp_path / "a.jsonl",
        [
            *texts[:6],
            "短。",
            "An English text that is long enough to be kept, but it is not Chinese at all.",
            "今天下雨，明天也下雨。" * 40,
            texts[0],
        ],
    )
    write_corpus(tmp_path / "b.jsonl", [*texts[6:], near])
    filters = {
        "length": {"minimum": 10},
        "chinese": {"minimum": 0.3},
        "repetition": {"top_n_grams": [[2, 0.5]], "dup_n_grams": [[5, 0.6]]},
        "exact_deduplication": {},
        "minhash": {"num_buckets": 14, "hashes_per_bucket": 8},
    }
    manifest = prepare(tmp_path, tmp_path / "rows", seq_len=512, tasks=2, filters=filters)
    assert manifest["documents"] == 12
    assert manifest["dropped"] == {
        "length": 1,
        "share of Chinese": 1,
        "Gopher Repetition": 1,
        "exact-deduplication stage 3": 1,
        "MinHash stage 4": 1,
    }
    kept = texts_of(tmp_path / "rows")
    assert set(texts[1:]) < set(kept)
    assert len({texts[0], near} & set(kept)) == 1
    assert manifest["filters"] == filters


def test_filters_that_leave_nothing_are_named(corpus, tmp_path):
    for number, filters in enumerate(
        ({"length": {"minimum": 999}}, {"length": {"minimum": 999}, "minhash": {}})
    ):
        with pytest.raises(RowsError, match=r"no document was left; .* dropped: {'length': 3}"):
            prepare(corpus, tmp_path / f"rows-{number}", filters=filters)


def test_the_examples_of_filters_are_some():
    filters = read_filters(ROOT / "configs" / "filters.yaml")
    assert set(filters) == {"length", "chinese", "repetition", "exact_deduplication", "minhash"}
    deduplication = read_filters(ROOT / "configs" / "deduplication.yaml")
    assert deduplication == {name: filters[name] for name in ("exact_deduplication", "minhash")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lenght: {minimum: 5}", r"no filter 'lenght'; there are length"),
        ("length: {min: 5}", r"length: no threshold 'min'; there are minimum, maximum"),
        ("length: 5", r"length: must hold thresholds"),
        ("length: {minimum: many}", r"length\.minimum: a number expected, not 'many'"),
        ("length: {minimum: [5]}", r"length\.minimum: a number expected, not \[5\]"),
        ("chinese: {minimum: 30}", r"chinese\.minimum: a share from 0 to 1 expected, not 30"),
        ("repetition: {top_n_grams: 0.2}", r"repetition\.top_n_grams: pairs of numbers expected"),
        (
            "repetition: {dup_line_frac: null, top_n_grams: [[2]]}",
            r"repetition\.top_n_grams: pairs",
        ),
        ("minhash: {num_buckets: null}", r"minhash\.num_buckets: a number expected, not None"),
        ("chinese:", r"chinese: give a threshold 'minimum'"),
        ("- length", r"keys and values expected, such as `length"),
        ("length: {", r"not YAML"),
    ],
)
def test_filters_that_do_not_exist_are_named(tmp_path, content, message):
    (tmp_path / "filters.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"filters\.yaml: {message}"):
        read_filters(tmp_path / "filters.yaml")


def test_as_many_files_as_tasks_may_be_open_at_once(monkeypatch):
    """Else duplicates of a corpus of 2,000 tasks are not found, after it was read."""
    resource = pytest.importorskip("resource")
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.__setitem__(0, new[0]))
    allow_open_files(500)
    assert limits[0] == 1024
    allow_open_files(2000)
    assert 2000 < limits[0] <= 4096
    with pytest.raises(OSError, match=r"the 5000 tasks .* allows 4096 files; raise that limit"):
        allow_open_files(5000)
