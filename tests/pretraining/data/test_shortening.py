"""Short texts: how many documents are cut, into what, and that nothing is lost."""

import collections

import pytest

from corpora import many_texts, prepare, texts_of, write_corpus
from pretraining.data.sentences import sentence_spans
from pretraining.data.shortening import (
    LONGEST_PASSAGE,
    SHORTEST_PASSAGE,
    Shortening,
    shorten,
)

TEXTS = [text * 6 for text in many_texts(300)]
SENTENCES = Shortening(1.0, "sentence")


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def test_the_share_of_the_documents_is_cut():
    cut = [text for text in TEXTS if len(shorten(text, Shortening(0.3), seed=0)) > 1]
    assert len(cut) == pytest.approx(0.3 * len(TEXTS), abs=25)  # three standard deviations
    assert all(shorten(text, Shortening(0.0), seed=0) == [text] for text in TEXTS)


def test_a_larger_share_cuts_the_same_documents_in_the_same_way_and_more():
    for text in TEXTS:
        few = shorten(text, Shortening(0.2), seed=0)
        assert few in ([text], shorten(text, Shortening(0.6), seed=0))


def test_a_document_is_cut_into_sentences_or_into_passages():
    kinds = collections.Counter()
    for text in TEXTS:
        pieces = shorten(text, Shortening(1.0), seed=0)
        assert "".join(pieces) == text
        if pieces == sentences(text):
            kinds["sentences"] += 1
            continue
        kinds["passages"] += 1
        longest = max(map(len, sentences(text)))
        assert all(len(piece) >= SHORTEST_PASSAGE for piece in pieces[:-1])
        assert all(len(piece) < LONGEST_PASSAGE + longest for piece in pieces)
    assert min(kinds.values()) > len(TEXTS) / 3


def test_all_documents_can_be_cut_into_single_sentences():
    for text in TEXTS:
        assert shorten(text, SENTENCES, seed=0) == sentences(text)


def test_seed_and_copy_draw_anew_and_nothing_else_does():
    def cuts(**settings) -> list[list[str]]:
        return [shorten(text, Shortening(0.5), **settings) for text in TEXTS]

    assert cuts(seed=0) == cuts(seed=0)
    assert cuts(seed=0) != cuts(seed=1)
    assert cuts(seed=0) != cuts(seed=0, copy=1)


def test_rows_hold_the_pieces_as_documents_of_their_own(tmp_path):
    texts = TEXTS[:40]
    write_corpus(tmp_path / "a.jsonl", texts[:25], domain="story", script="hans")
    write_corpus(tmp_path / "b.jsonl", texts[25:], domain="story", script="hans")
    shortening = Shortening(0.5)
    manifest = prepare(tmp_path, tmp_path / "rows", seq_len=1024, shortening=shortening)
    pieces = [piece for text in texts for piece in shorten(text, shortening, seed=0)]
    assert texts_of(tmp_path / "rows") == collections.Counter(pieces)
    assert manifest["documents"] == len(pieces) > len(texts)
    assert manifest["domains"]["story (hans)"]["characters"] == sum(map(len, texts))


def test_filters_see_whole_documents(tmp_path):
    write_corpus(tmp_path / "a.jsonl", ["灯亮了。船靠岸了。", "灯灭了。"])
    filters = {"length": {"minimum": 6}}
    prepare(tmp_path, tmp_path / "rows", filters=filters, shortening=SENTENCES)
    assert texts_of(tmp_path / "rows") == {"灯亮了。": 1, "船靠岸了。": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.2}, r"short_share 1\.2: give a share from 0 to 1"),
        ({"share": float("nan")}, r"short_share nan"),
        ({"unit": "word"}, r"short_unit 'word': give mixed or sentence"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Shortening(**settings)
