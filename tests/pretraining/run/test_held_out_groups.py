"""Where masked tokens stand."""

from pathlib import Path

import numpy as np
import pytest

from data_collator_wwm import WORD_START
from pretraining.data.rows import Rows, open_rows, write_manifest, write_shards
from pretraining.run.held_out_groups import TokenPlaces, token_places

CLS, SEP, PAD = 2, 3, 0


def two_rows(folder: Path, **facts) -> Rows:
    """A row of two documents, and one of a document and padding; 8 continues a word."""
    rows = np.array([[CLS, 7, 8, SEP, CLS, 7, SEP], [CLS, 7, 7, 8, SEP, PAD, PAD]], np.uint16)
    rows[rows == 7] |= WORD_START
    (shard,) = write_shards(folder, "rows", list(rows), 7)
    special = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD}
    write_manifest(folder, 7, [{**shard, **facts}], {"special_token_ids": special})
    return open_rows(folder)


@pytest.fixture
def places(tmp_path) -> TokenPlaces:
    return token_places(two_rows(tmp_path))


def test_documents_are_told_apart_over_all_rows(places):
    assert places.documents[0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert places.documents[1, :5].tolist() == [3] * 5
    assert places.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_parts_of_a_document_are_one_where_that_is_known(tmp_path):
    places = token_places(two_rows(tmp_path, documents=[1234567890, 7, 1234567890]))
    assert places.documents[0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert places.documents[1, :5].tolist() == [1] * 5
    assert places.lengths[1, :5].tolist() == [3] * 5


def test_the_length_of_a_document_is_its_text(places):
    assert places.lengths[0].tolist() == [2, 2, 2, 2, 1, 1, 1]
    assert places.lengths[1, :5].tolist() == [3] * 5


def test_words_are_told_apart(places):
    assert places.words[0, 1] == places.words[0, 2] != places.words[0, 5]
    assert places.words[1, 1] != places.words[1, 2] == places.words[1, 3]


def test_bands_double_and_empty_ones_are_left_out():
    numbers = np.array([1, 16, 17, 130, 2000])
    places = TokenPlaces(numbers, numbers, numbers, numbers, None)
    lengths = {name: numbers[chosen].tolist() for name, chosen in places.by_length().items()}
    assert lengths == {
        "/documents of 1-16 tokens": [1, 16],
        "/documents of 17-32 tokens": [17],
        "/documents of 129-256 tokens": [130],
        "/documents of 1025-2048 tokens": [2000],
    }
    positions = {name: numbers[chosen].tolist() for name, chosen in places.by_position().items()}
    assert positions == {
        "/tokens 0-127": [1, 16, 17],
        "/tokens 128-255": [130],
        "/tokens 1024-2047": [2000],
    }
    assert places.by_domain() == {}
