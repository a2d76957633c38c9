"""Reading corpora: every kind of file, and complaints that name file, line and mend."""

import gzip
import json
import lzma

import pytest

from pretraining.corpus import CorpusError, read_documents

LINES = [{"text": "第一篇", "domain": "food"}, {"text": "第二篇", "script": "hans"}]
JSONL = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.xz", lzma.compress), ("a.jsonl.gz", gzip.compress)],
)
def test_documents_are_read_in_order(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(JSONL))
    documents = list(read_documents([str(tmp_path / name)]))
    assert [document.text for document in documents] == ["第一篇", "第二篇"]
    assert [document.domain for document in documents] == ["food", "unknown"]
    assert [document.line for document in documents] == [1, 2]


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path):
    for name, text in (("b.jsonl", "乙"), ("a.jsonl", "甲")):
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [document.text for document in read_documents([str(path)])] == ["甲", "乙"]


def test_another_field_can_hold_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "正文"}\n', encoding="utf-8")
    (document,) = read_documents([str(tmp_path / "a.jsonl")], text_field="content")
    assert document.text == "正文"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "', r"line 3: not a JSON object .*mend or drop"),
        (b'["text"]', r"line 3: not a JSON object but a list"),
        (b'{"id": ' + b"1" * 5000 + b"}", r"line 3: not a JSON object .*mend or drop"),
        (b"[" * 100_000, r"line 3: not a JSON object .*mend or drop"),
        ('{"text": "文"}'.encode("gb18030"), r"line 3: not UTF-8 .*convert"),
        (b'{"title": "x"}', r"line 3: no field 'text' \(there: title\).*--text_field"),
        (b'{"text": ""}', r"line 3: the field 'text' must be a text that is not empty"),
        (b'{"text": 5}', r"line 3: the field 'text' must be a text"),
        (rb'{"text": "\ud800"}', r"line 3: the text holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(JSONL + line + b"\n")
    with pytest.raises(CorpusError, match=rf"a\.jsonl, {message}"):
        list(read_documents([str(tmp_path / "a.jsonl")]))


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl: the corpus is empty"):
        list(read_documents([str(tmp_path / "a.jsonl")]))


def test_a_missing_corpus_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl: no corpus file there"):
        list(read_documents([str(tmp_path / "nowhere.jsonl")]))


def test_a_kind_of_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.csv: not a kind of corpus file"):
        list(read_documents([str(tmp_path / "a.csv")]))


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl.xz", lzma.compress), ("a.jsonl.gz", gzip.compress)]
)
def test_a_damaged_compressed_file_is_named(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(JSONL * 1000)[:-20])
    with pytest.raises(CorpusError, match=rf"{name}: damaged compressed file after line"):
        list(read_documents([str(tmp_path / name)]))


def test_a_compressed_file_damaged_in_the_middle_is_named(tmp_path):
    packed = bytearray(gzip.compress(JSONL * 1000))
    # The first block's type, right behind the ten-byte header, becomes the one deflate reserves.
    packed[10] |= 0b110
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz: damaged compressed file after line 0"):
        list(read_documents([str(tmp_path / "a.jsonl.gz")]))
