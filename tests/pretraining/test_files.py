"""Files: complete or not at all, and UTF-8 with or without a byte order mark."""

import codecs

import pytest

from pretraining.files import (
    decode,
    read_json,
    read_json_lines,
    read_text,
    replacing,
    write_json_lines,
)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("\ufeff一\n二", "一\n二"),
        ("一\n\ufeff二\n\ufeff", "一\n二\n"),
        ("\ufeff\ufeff一", "一"),
        ("一\ufeff二", "一\ufeff二"),
        ("", ""),
    ],
)
def test_byte_order_marks_are_dropped_where_files_began(content, text):
    assert decode(content.encode()) == text


def test_lines_end_with_one_character(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "一\r\n二\r三\n".encode())
    assert read_text(tmp_path / "a.txt") == "一\n二\n三\n"


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"key": "\ufeff"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"key": "\ufeff"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("一".encode("utf-16"), r"a\.json: UTF-16, not UTF-8; convert .* iconv -f UTF-16"),
        (codecs.BOM_UTF16_BE + "一".encode("utf-16-be"), r"a\.json: UTF-16, not UTF-8"),
        ("一".encode("utf-32"), r"a\.json: UTF-32, not UTF-8"),
        ("早市".encode("gb18030"), r"a\.json: not UTF-8"),
        (b"{", r"a\.json: not a JSON file"),
        (b"[" * 100_000, r"a\.json: not a JSON file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")


def test_json_lines_are_numbered_and_empty_ones_are_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\r\n\n \n{"a": "\u2028"}\n', encoding="utf-8")
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
    ("line", "message"), [("{", "not JSON .*one object a line"), ("[]", r"not a JSON object: \[\]")]
)
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f"{{}}\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {message}"):
        list(read_json_lines(tmp_path / "a.jsonl"))


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    with replacing(file) as temporary:
        temporary.write_text("whole", encoding="utf-8")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert file.read_text(encoding="utf-8") == "whole"
    assert list(file.parent.iterdir()) == [file]


def test_two_that_write_a_file_at_once_do_not_meet(tmp_path):
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "first"


def test_json_lines_that_were_written_are_read(tmp_path):
    rows = [{"text": "一\n二\u2028"}, {"text": "三", "number": 1}]
    write_json_lines(tmp_path / "a.jsonl", iter(rows))
    assert list(read_json_lines(tmp_path / "a.jsonl")) == list(enumerate(rows, start=1))
    assert "一" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
