"""Masked words: both tokenizers hide the same characters, chosen by the text alone."""

import numpy as np
import pytest

from corpora import TOKENIZER
from experiments.twin import masked_words
from experiments.twin.masked_words import PIECE_CHARACTERS, masked_pieces, units
from pretraining.data.corpus import Document
from pretraining.data.tokens import open_tokenizer
from pretraining.data.words import Segmenter

TEXT = (
    "星期天早上，姐姐在阳台上给番茄浇水，溅了一地。 "
    "她用 iPhone 拍了三张照片，发给 ＡＢＣ 群里的朋友。\n"
    "晚上下了一场大雨，第二天花盆里的土还是湿的，叶子却更绿了。邻居问她怎么养的，她说少浇水就行。"
)


def opened(file):
    tokenizer = open_tokenizer(file)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(twin_workspace):
    return [opened(TOKENIZER), opened(twin_workspace / "tokenizer" / "tokenizer.json")]


@pytest.fixture(scope="module")
def pieces(tokenizers):
    texts = [TEXT[place:] + TEXT * 12 for place in range(60)]
    documents = [Document(text, "diary", "hans", n) for n, text in enumerate(texts)]
    return list(masked_pieces(documents, tokenizers))


def test_both_sides_mask_the_same_characters(pieces):
    for piece in pieces:
        for side in piece.sides:
            hidden = np.zeros(len(piece.text), dtype=bool)
            for start, end in side.offsets[side.masked]:
                hidden[start:end] = True
            assert (hidden == piece.masked).all()


def test_no_word_is_masked_in_part(pieces):
    segmenter = Segmenter()
    for piece in pieces[:20]:
        place = 0
        for word in segmenter.segment(piece.text):
            inside = piece.masked[place : place + len(word)]
            assert inside.all() or not inside.any()
            place += len(word)


def test_about_fifteen_percent_of_the_words_are_masked(pieces):
    assert 0.1 < np.mean(np.concatenate([piece.masked for piece in pieces])) < 0.16


def test_what_one_side_would_not_have_to_spell_is_never_masked(pieces):
    masked = {
        character
        for piece in pieces
        for character, hidden in zip(piece.text, piece.masked, strict=True)
        if hidden
    }
    # BERT drops blanks and turns capitals into small letters, so it would have less to tell.
    assert not masked & {" ", "\n", "P", "Ａ"}
    assert {"，", "水", "溅"} <= masked


def test_pieces_are_the_documents_cut_before_words(tokenizers):
    words = Segmenter().segment(TEXT * 12)
    (cut,) = [masked_pieces([Document(TEXT * 12, "diary", "hans", 0)], tokenizers)]
    texts = [piece.text for piece in cut]
    assert "".join(texts) == TEXT * 12
    assert len(texts) > 1 and max(map(len, texts)) <= PIECE_CHARACTERS
    ends = np.cumsum([len(word) for word in words])
    assert set(np.cumsum([len(text) for text in texts])) <= set(ends)


def test_a_piece_that_one_side_cannot_read_whole_is_left_out(pieces, tokenizers, monkeypatch):
    longest = max(len(side.ids) for piece in pieces for side in piece.sides)
    monkeypatch.setattr(masked_words, "MAX_TOKENS", longest - 1)
    documents = [Document(TEXT + TEXT * 12, "diary", "hans", 0)]
    kept = list(masked_pieces(documents, tokenizers))
    assert len(kept) > 0 and max(len(side.ids) for piece in kept for side in piece.sides) < longest


def test_masks_are_the_same_whatever_stands_before_in_the_corpus(pieces, tokenizers):
    documents = [Document(TEXT + TEXT * 12, "diary", "hans", 5)]
    alone = list(masked_pieces(documents, tokenizers))
    again = [piece for piece in pieces if piece.document == 0]
    assert [piece.text for piece in alone] == [piece.text for piece in again]
    assert all((a.masked == b.masked).all() for a, b in zip(alone, again, strict=True))


def test_a_unit_ends_only_where_words_and_tokens_of_both_sides_do():
    # 今天|下雨|了: one side has a token across a border of words, the other cuts a word.
    words = np.array([0, 2, 4])
    wide = np.array([[0, 2], [2, 5]])
    narrow = np.array([[n, n + 1] for n in range(5)])
    assert units("今天下雨了", words, [wide, narrow]).tolist() == [0, 2]
    assert units("今天下雨了", words, [narrow, narrow]).tolist() == [0, 2, 4]
