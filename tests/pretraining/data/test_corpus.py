"""Reading corpora: every kind of file, and errors that name file, line and how to fix it."""

import codecs
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.corpus import (
    CorpusError,
    find_files,
    passed_over,
    read_documents,
    read_file,
    zstd,
)

LINES = [{"text": "第一篇", "domain": "food"}, {"text": "第二篇", "script": "hans"}]
JSONL = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()
PACKED = [
    ("a.jsonl.xz", lzma.compress),
    ("a.jsonl.gz", gzip.compress),
    ("a.jsonl.zst", zstd.compress),
]


def parquet(file, texts, kind=None, name="text"):
    pq.write_table(pa.table({name: pa.array(texts, kind), "domain": ["food"] * len(texts)}), file)


def read(path, **arguments):
    return list(read_documents([str(path)], **arguments))


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), *PACKED])
def test_documents_are_read_in_order(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(JSONL))
    documents = read(tmp_path / name)
    assert [document.text for document in documents] == ["第一篇", "第二篇"]
    assert [document.domain for document in documents] == ["food", "unknown"]
    assert [document.line for document in documents] == [1, 2]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_the_rows_of_a_parquet_file_are_documents(tmp_path, kind):
    parquet(tmp_path / "a.parquet", ["第一篇", "第二篇"], kind)
    documents = read(tmp_path / "a.parquet")
    assert [document.text for document in documents] == ["第一篇", "第二篇"]
    assert [document.line for document in documents] == [1, 2]
    assert {document.domain for document in documents} == {"food"}


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("第一行\r\n第二行\n".encode())
    (document,) = read(tmp_path / "a.txt")
    assert document.text == "第一行\r\n第二行\n"


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path):
    for name, text in (("b.jsonl", "乙"), ("a.jsonl", "甲")):
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("what is here", encoding="utf-8")
    (tmp_path / ".copies").mkdir()
    (tmp_path / ".copies" / "a.jsonl").write_text('{"text": "甲"}', encoding="utf-8")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [document.text for document in read(path)] == ["甲", "乙"]


def test_another_field_can_hold_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "正文"}\n', encoding="utf-8")
    parquet(tmp_path / "b.parquet", ["正文"], name="content")
    documents = read(tmp_path, text_field="content")
    assert [document.text for document in documents] == ["正文", "正文"]


def test_a_domain_may_be_a_number(tmp_path):
    lines = [f'{{"text": "x", "domain": {value}}}' for value in ("3", "0", "null", '""')]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    domains = [document.domain for document in read_file(str(tmp_path / "a.jsonl"))]
    assert domains == ["3", "0", "unknown", "unknown"]


def test_a_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    file = str(tmp_path / "a.jsonl")
    assert find_files([file, str(tmp_path), str(tmp_path / "*.jsonl")]) == [file]


def test_what_a_folder_holds_besides_is_counted_by_its_ending(tmp_path):
    for name in ("a.jsonl", "list.2024.csv", "README", "notes/LICENSE", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert passed_over([str(tmp_path)]) == {".2024.csv": 1, "without an ending": 2}


def test_only_the_wanted_lines_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{broken\n" + JSONL)
    (document,) = read_file(str(tmp_path / "a.jsonl"), wanted=lambda number: number == 3)
    assert document.text == "第二篇"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"text": "', "broken line", r"line 3: not a JSON object .*fix or drop"),
        (b'["text"]', "broken line", r"line 3: not a JSON object but a list"),
        (b'{"id": ' + b"1" * 5000 + b"}", "broken line", r"line 3: not a JSON object .*fix"),
        (b"[" * 100_000, "broken line", r"line 3: not a JSON object .*fix or drop"),
        ('{"text": "文"}'.encode("gb18030"), "not UTF-8", r"line 3: not UTF-8 .*convert"),
        (
            b'{"title": "x"}',
            "missing field",
            r"line 3: no field 'text' \(there: title\).*--text_field",
        ),
        (b'{"text": ""}', "empty document", r"line 3: the field 'text' must be .* not empty"),
        (b'{"text": 5}', "not text", r"line 3: the field 'text' must be a text, got 5"),
        (
            b'{"text": "x", "domain": ["a"]}',
            "domain or script is no name",
            r"line 3: the field 'domain' must be a text or a number, not \['a'\]",
        ),
        (rb'{"text": "\ud800"}', "unpaired surrogate", r"line 3: .* an unpaired surrogate"),
    ],
)
def test_a_bad_line_is_named_or_passed_over(tmp_path, line, kind, message):
    (tmp_path / "a.jsonl").write_bytes(JSONL + line + b"\n" + JSONL)
    with pytest.raises(CorpusError, match=rf"a\.jsonl, {message}"):
        read(tmp_path / "a.jsonl")
    errors = []
    assert len(read(tmp_path / "a.jsonl", on_error=errors.append)) == 4
    assert [error.kind for error in errors] == [kind]


def test_a_bad_row_of_a_parquet_file_is_named_or_passed_over(tmp_path):
    broken = "坏".encode()[:2]
    column = pa.array([b"a", broken, None, b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    errors = []
    documents = read(tmp_path / "a.parquet", on_error=errors.append)
    assert [document.text for document in documents] == ["a", "b"]
    assert [error.kind for error in errors] == ["not UTF-8", "empty document"]
    assert "a.parquet, line 2: not UTF-8" in str(errors[0])


def test_a_parquet_file_without_the_field_is_named(tmp_path):
    parquet(tmp_path / "a.parquet", ["正文"], name="content")
    with pytest.raises(CorpusError, match=r"no field 'text' \(there: content, domain\)"):
        read(tmp_path / "a.parquet")


# --- byte order marks -------------------------------------------------------------------------

BOM = codecs.BOM_UTF8
FIRST, SECOND = JSONL.splitlines(keepends=True)


@pytest.mark.parametrize(
    "content",
    [
        *(BOM + JSONL, FIRST + BOM + SECOND, BOM + FIRST + BOM + SECOND, BOM + BOM + JSONL),
        *(BOM + b"\n" + JSONL, JSONL + BOM, BOM + FIRST[:-1] + b"\r\n" + BOM + SECOND),
    ],
)
@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), *PACKED])
def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path, name, pack, content):
    (tmp_path / name).write_bytes(pack(content))
    assert [document.text for document in read(tmp_path / name)] == ["第一篇", "第二篇"]


def test_concatenated_compressed_files_with_byte_order_marks_are_read(tmp_path):
    packed = gzip.compress(BOM + FIRST) + gzip.compress(BOM + SECOND)
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert [document.text for document in read(tmp_path / "a.jsonl.gz")] == ["第一篇", "第二篇"]


@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.xz", lzma.compress)])
def test_a_byte_order_mark_is_no_part_of_a_text_file(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack("\ufeff第一\ufeff行\r\n\ufeff第二行\n".encode()))
    (document,) = read(tmp_path / name)
    assert document.text == "第一\ufeff行\r\n第二行\n"  # inside a line, U+FEFF is a character


def test_a_text_file_of_nothing_but_a_byte_order_mark_is_empty(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM)
    with pytest.raises(CorpusError, match=r"a\.txt, line 1: .* not empty"):
        read(tmp_path / "a.txt")


def test_inside_a_string_u_feff_is_a_character_like_any_other(tmp_path):
    text = "\ufeff第一\n\ufeff篇"
    lines = [json.dumps({"text": text}, ensure_ascii=ascii) for ascii in (True, False)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parquet(tmp_path / "b.parquet", [text])
    assert [document.text for document in read(tmp_path)] == [text] * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl", bytes), ("a.txt", bytes), ("a.jsonl.gz", gzip.compress)]
)
def test_another_encoding_is_named_once_with_how_to_convert(tmp_path, name, pack, encoding):
    (tmp_path / name).write_bytes(pack((JSONL * 3).decode().encode(encoding)))
    errors = []
    assert list(read_file(str(tmp_path / name), on_error=errors.append)) == []
    assert [error.kind for error in errors] == ["not UTF-8"]
    what = encoding.upper()
    assert f"{name}: {what}, not UTF-8; convert" in str(errors[0])
    assert f"iconv -f {what} -t UTF-8" in str(errors[0])
    # Where tasks share a file by lines, the one with the first line says it.
    others = list(read_file(str(tmp_path / name), wanted=lambda number: number == 2))
    assert others == []


# --- files ------------------------------------------------------------------------------------


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl: the corpus is empty"):
        read(tmp_path / "a.jsonl")


def test_a_missing_corpus_is_refused(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path / "*.jsonl", tmp_path):
        with pytest.raises(CorpusError, match=r"no corpus file there"):
            read(path)


def test_a_kind_of_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.csv: not a kind of corpus file"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_a_truncated_compressed_file_is_named_and_what_came_before_is_kept(tmp_path, name, pack):
    lines = b"".join(json.dumps({"text": f"{n:x}" * 50}).encode() + b"\n" for n in range(5000))
    packed = pack(lines)
    (tmp_path / name).write_bytes(packed[: len(packed) * 2 // 3])
    errors = []
    documents = read(tmp_path / name, on_error=errors.append)
    assert 0 < len(documents) < 5000
    (error,) = errors
    assert error.kind == "damaged file"
    assert f"{name}: damaged after line {len(documents)}" in str(error)


def test_a_compressed_file_damaged_in_the_middle_is_named(tmp_path):
    packed = bytearray(gzip.compress(JSONL * 1000))
    # The first block's type, right behind the ten-byte header, becomes the one deflate reserves.
    packed[10] |= 0b110
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz: damaged after line 0"):
        read(tmp_path / "a.jsonl.gz")


def test_a_damaged_parquet_file_is_named(tmp_path):
    parquet(tmp_path / "a.parquet", ["正文"] * 1000)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorpusError, match=r"a\.parquet: damaged after line 0"):
        read(tmp_path / "a.parquet")


def test_a_file_that_vanishes_is_named_and_passed_over(tmp_path):
    errors = []
    assert list(read_file(str(tmp_path / "gone.jsonl"), on_error=errors.append)) == []
    assert [error.kind for error in errors] == ["vanished file"]
    assert "gone.jsonl: has been removed" in str(errors[0])
