"""Preparation: from text to rows that hold all of it, or to a clear message and nothing."""

import codecs
import collections
import gzip
import json
import shutil
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest

from corpora import TEXTS, TOKENIZER, many_texts, prepare, shards_of, texts_of, write_corpus
from data_collator_wwm import split_row
from pretraining.data.corpus import CorpusError
from pretraining.data.preparation import Preparation
from pretraining.data.rows import RowsError, open_rows
from pretraining.data.shortening import Shortening
from pretraining.data.steps import line_number_of


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


@pytest.fixture
def no_network(monkeypatch):
    def connect(*args):
        raise AssertionError(f"contacts {args[1]}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_rows_hold_the_texts_and_the_manifest_says_what_they_are(corpus, tmp_path):
    manifest = prepare(corpus, tmp_path / "rows")
    rows = open_rows(tmp_path / "rows")
    assert manifest == rows.manifest
    assert (manifest["documents"], manifest["characters"]) == (3, sum(map(len, TEXTS)))
    ids, starts = split_row(np.stack([rows[index] for index in range(len(rows))]))
    assert manifest["padding_share"] == pytest.approx((ids == 0).mean())
    assert manifest["tokens"] == (ids >= manifest["first_ordinary_id"]).sum()
    pieces = texts_of(tmp_path / "rows")
    assert {TEXTS[0], TEXTS[2]} <= set(pieces)
    assert sum(len(piece) * number for piece, number in pieces.items()) == sum(map(len, TEXTS))
    assert not starts[np.isin(ids, [0, 2, 3])].any()


def test_the_manifest_counts_by_domain_and_script(tmp_path):
    write_corpus(tmp_path / "a.jsonl", TEXTS[:1], domain="market", script="hans")
    write_corpus(tmp_path / "b.jsonl", TEXTS[2:])
    domains = prepare(tmp_path, tmp_path / "rows")["domains"]
    assert set(domains) == {"market (hans)", "unknown (unknown)"}
    assert domains["market (hans)"]["characters"] == len(TEXTS[0])
    assert sum(each["documents"] for each in domains.values()) == 2


def test_domains_can_be_kept_apart(tmp_path):
    market, school = TEXTS[0], "下课铃一响，操场上就热闹起来。"
    write_corpus(tmp_path / "a.jsonl", [market, market], domain="market", script="hans")
    write_corpus(tmp_path / "b.jsonl", [school, market], domain="school", script="hans")
    manifest = prepare(tmp_path, tmp_path / "rows", tasks=1, separate_domains=True)
    assert [(shard["domain"], shard["rows"]) for shard in manifest["shards"]] == [
        ("market (hans)", 1),
        ("school (hans)", 1),
    ]
    assert texts_of(tmp_path / "rows") == {market: 3, school: 1}


def test_parts_of_a_document_are_known_as_such_where_domains_are_kept_apart(tmp_path):
    long, short = "河边的杏树开花了，" * 40, "桥头的茶摊今天不开门。"
    write_corpus(tmp_path / "a.jsonl", [long, short], domain="market", script="hans")
    (shard,) = prepare(tmp_path, tmp_path / "rows", separate_domains=True)["shards"]
    rows = open_rows(tmp_path / "rows")
    begins = sum(int((rows[index] == 2).sum()) for index in range(len(rows)))
    assert len(shard["documents"]) == begins >= 4
    assert sorted(collections.Counter(shard["documents"]).values()) == [1, begins - 1]


def test_parts_have_the_number_of_their_line():
    assert line_number_of("a/valid.jsonl:7#12") == line_number_of("b/valid.jsonl:7")
    assert line_number_of("valid.jsonl:7") != line_number_of("valid.jsonl:8")


def test_datasets_opens_and_streams_the_shards(corpus, tmp_path):
    manifest = prepare(corpus, tmp_path / "rows")
    files = str(tmp_path / "rows" / "*.arrow")
    opened = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    streamed = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)
    assert len(opened) == manifest["rows"]
    assert [row["row"] for row in streamed] == opened["row"][:]


def test_the_number_of_workers_changes_no_byte(tmp_path):
    for name in ("a", "b", "c"):
        texts = [name + text for text in many_texts(30)]
        write_corpus(tmp_path / f"{name}.jsonl", texts, domain=name)
    drawn = {"shortening": Shortening(0.5), "weights": {"a": 1.7, "b": 0.4}, "tasks": 3}
    one = prepare(tmp_path, tmp_path / "one", workers=1, **drawn)
    two = prepare(tmp_path, tmp_path / "two", workers=2, **drawn)
    assert one["shards"] == two["shards"]
    assert shards_of(tmp_path / "one") == shards_of(tmp_path / "two")


def test_however_many_tasks_no_document_is_lost_or_doubled(tmp_path):
    texts = many_texts(100)
    write_corpus(tmp_path / "a.jsonl", texts[:80])
    write_corpus(tmp_path / "b.jsonl", texts[80:])
    prepared = {}
    for tasks in (1, 2, 5):
        manifest = prepare(tmp_path, tmp_path / f"rows-{tasks}", seq_len=256, tasks=tasks)
        assert manifest["documents"] == 100
        prepared[tasks] = texts_of(tmp_path / f"rows-{tasks}")
    assert prepared[1] == prepared[2] == prepared[5] == collections.Counter(texts)


# --- bad input --------------------------------------------------------------------------------


def test_bad_input_is_skipped_counted_and_reported(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus(folder / "a.jsonl", TEXTS)
    (folder / "b.jsonl").write_bytes(b'{broken\n{"text": ""}\n{"title": "x"}\n{"text": "\xff"}\n')
    (folder / "c.jsonl.gz").write_bytes(b"not compressed")
    manifest = prepare(folder, tmp_path / "rows")
    assert manifest["documents"] == 3
    assert manifest["bad_input"] == {
        "broken line": 1,
        "damaged file": 1,
        "empty document": 1,
        "missing field": 1,
        "not UTF-8": 1,
    }
    reports = "".join(
        file.read_text(encoding="utf-8")
        for file in (tmp_path / "rows.work" / "bad_input").iterdir()
    )
    assert f"{folder / 'b.jsonl'}, line 1: not a JSON object" in reports
    assert f"{folder / 'c.jsonl.gz'}: damaged after line 0" in reports


def test_a_damaged_file_that_tasks_share_is_reported_once(tmp_path):
    file = write_corpus(tmp_path / "lines", many_texts(400))
    packed = gzip.compress(file.read_bytes())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    one = prepare(tmp_path / "a.jsonl.gz", tmp_path / "one")
    three = prepare(tmp_path / "a.jsonl.gz", tmp_path / "three", tasks=3)
    assert three["documents"] == one["documents"] > 0
    assert three["bad_input"] == one["bad_input"] == {"damaged file": 1}
    reports = (tmp_path / "three.work" / "bad_input").iterdir()
    assert f"damaged after line {one['documents']} " in "".join(map(Path.read_text, reports))


def test_refused_bad_input_stops_the_work_and_leaves_no_row_set(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"\n{broken\n")
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 5: not a JSON object"):
        prepare(corpus, tmp_path / "rows", refuse_bad_input=True)
    with pytest.raises(RowsError, match=r"rows is not a row set"):
        open_rows(tmp_path / "rows")
    assert not list((tmp_path / "rows").glob("*.arrow"))


def test_a_finished_set_is_kept(corpus, tmp_path):
    manifest = prepare(corpus, tmp_path / "rows")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("rows*/*")}
    assert prepare(corpus, tmp_path / "rows") == manifest
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("rows*/*")} == before

    other = write_corpus(tmp_path / "other.jsonl", many_texts(4))
    with pytest.raises(RowsError, match=r"rows\.work holds work begun with other files"):
        prepare(other, tmp_path / "rows")
    corpus.write_bytes(corpus.read_bytes() + b"\n")
    with pytest.raises(RowsError, match=r"corpus.jsonl has changed since it was read"):
        prepare(corpus, tmp_path / "rows")
    shutil.rmtree(tmp_path / "rows.work")
    with pytest.raises(RowsError, match=r"rows exists already; remove it and .*rows\.work"):
        prepare(corpus, tmp_path / "rows")


def test_a_restart_whose_shards_are_gone_is_refused(corpus, tmp_path):
    prepare(corpus, tmp_path / "rows")
    shutil.rmtree(tmp_path / "rows")
    with pytest.raises(RowsError, match=r"rows-.*arrow is missing, .*remove that folder too"):
        prepare(corpus, tmp_path / "rows")


def test_what_a_preparation_leaves_within_the_corpus_is_no_part_of_it(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"{broken\n")
    first = prepare(tmp_path, tmp_path / "rows")
    assert (tmp_path / "rows.work" / "bad_input" / "00000.jsonl").read_text(encoding="utf-8")
    assert prepare(tmp_path, tmp_path / "others")["shards"] == first["shards"]


def test_a_tokenizer_without_the_special_tokens_is_refused(corpus, tmp_path):
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    content["model"]["vocab"]["[mask]"] = content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = content["added_tokens"][:4]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"special tokens \['\[MASK\]'\] are missing"):
        prepare(corpus, tmp_path / "rows", tokenizer_file=other)


def test_a_restart_with_another_plan_is_refused(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"{broken\n")
    with pytest.raises(CorpusError):
        prepare(corpus, tmp_path / "rows", refuse_bad_input=True)
    with pytest.raises(RowsError, match=r"begun with other tasks, filters; repeat that command"):
        prepare(corpus, tmp_path / "rows", tasks=7, filters={"length": {"minimum": 5}})


def test_shards_of_work_that_was_given_up_are_not_mixed_with_others(corpus, tmp_path):
    prepare(corpus, tmp_path / "rows")
    (tmp_path / "rows" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "rows.work")
    with pytest.raises(RowsError, match=r"rows holds shards of work that was given up; remove it"):
        prepare(corpus, tmp_path / "rows", tasks=2)


def test_a_file_that_was_read_and_has_changed_since_is_refused(tmp_path):
    """Tasks share a file by its lines, so a line that is removed moves what was read."""
    file = write_corpus(tmp_path / "a.jsonl", many_texts(40))
    whole = file.read_bytes()
    for tasks in (1, 2):
        output = tmp_path / f"rows-{tasks}"
        file.write_bytes(b"{broken\n" + whole)  # the last task of two meets it
        with pytest.raises(CorpusError, match=r"a\.jsonl, line 1: not a JSON object"):
            prepare(file, output, tasks=tasks, refuse_bad_input=True)
        file.write_bytes(whole)
        if tasks == 2:
            with pytest.raises(RowsError, match=r"a\.jsonl has changed since it was read; remove"):
                prepare(file, output, tasks=tasks, refuse_bad_input=True)
        else:
            assert prepare(file, output, tasks=1, refuse_bad_input=True)["documents"] == 40


def test_the_plan_has_the_keys_that_a_restart_compares(corpus, tmp_path):
    """Work begun with an earlier version goes on: it compares these keys."""
    manifest = prepare(corpus, tmp_path / "rows")
    plan = json.loads((tmp_path / "rows.work" / "plan.json").read_text(encoding="utf-8"))
    of_the_work = {
        "files": [str(corpus)],
        "sizes": {str(corpus): corpus.stat().st_size},
        "seq_len": 64,
        "tasks": 1,
        "text_field": "text",
        "separate_domains": False,
        "shortening": {"share": 0.0, "unit": "mixed"},
        "weights": {},
        "seed": 0,
    }
    of_the_tools = {
        *("vocab_size", "first_ordinary_id", "special_token_ids", "tokenizer_sha256"),
        *("dictionary_sha256", "filters", "versions"),
    }
    assert set(plan) == set(of_the_work) | of_the_tools
    assert plan | of_the_work == plan
    assert all(manifest[key] == plan[key] for key in of_the_tools)


def test_work_begun_before_a_setting_existed_goes_on_without_it(corpus, tmp_path):
    manifest = prepare(corpus, tmp_path / "rows")
    file = tmp_path / "rows.work" / "plan.json"
    plan = json.loads(file.read_text(encoding="utf-8"))
    for setting in ("shortening", "weights", "seed"):
        del plan[setting]
    file.write_text(json.dumps(plan), encoding="utf-8")
    (tmp_path / "rows" / "manifest.json").unlink()
    with pytest.raises(RowsError, match=r"begun with other weights; repeat"):
        prepare(corpus, tmp_path / "rows", weights={"story": 2.0})
    with pytest.raises(RowsError, match=r"begun with other shortening; repeat"):
        prepare(corpus, tmp_path / "rows", shortening=Shortening(0.3))
    (tmp_path / "rows.work" / "logs" / "manifest" / "completions" / "00000").unlink()
    assert prepare(corpus, tmp_path / "rows") == manifest


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 2}, r"seq_len 2 has no room for a token"),
        ({"tasks": 0}, r"tasks 0: give at least 1"),
        ({"tasks": -3}, r"tasks -3: give at least 1"),
        ({"filters": {"lenght": {}}}, r"no filter 'lenght'"),
        ({"filters": {"length": {"min": 3}}}, r"length: no threshold 'min'"),
        ({"weights": {"story": -1}}, r"story: the weight -1 is not a number from 0 up"),
        ({"tokenizer_file": Path("nowhere.json")}, r"nowhere\.json: no such tokenizer"),
        ({"dictionary": Path("nowhere.txt")}, r"nowhere\.txt"),
    ],
)
def test_settings_are_checked_when_built(corpus, tmp_path, settings, message):
    settings = {"tokenizer_file": TOKENIZER, "seq_len": 64, **settings}
    with pytest.raises((OSError, ValueError), match=message):
        Preparation([str(corpus)], output=tmp_path / "rows", **settings)


def test_building_writes_nothing_and_contacts_nothing(tmp_path, no_network):
    built = Preparation(["hf://datasets/someone/texts"], TOKENIZER, 64, tmp_path / "rows")
    assert built.facts["vocab_size"] == 32_000
    assert list(tmp_path.iterdir()) == []


def test_words_without_effect_are_named_when_built(corpus, tmp_path):
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("桂花糯米藕 nz\n的了 1\n", encoding="utf-8")
    built = Preparation([str(corpus)], TOKENIZER, 64, tmp_path / "rows", dictionary=dictionary)
    (message,) = built.unused_words
    assert "words.txt, line 2: '的了' has no effect" in message


# --- byte order marks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_a_byte_order_mark_changes_no_row(tmp_path, name):
    rows = []
    for number, mark in enumerate((b"", codecs.BOM_UTF8)):
        folder = tmp_path / str(number)
        folder.mkdir()
        plain = mark + write_corpus(folder / "a", TEXTS).read_bytes()
        (folder / "a").unlink()
        (folder / name).write_bytes(gzip.compress(plain) if name.endswith("gz") else plain)
        manifest = prepare(folder, tmp_path / f"rows-{number}")
        assert manifest["bad_input"] == {}
        rows.append(shards_of(tmp_path / f"rows-{number}"))
    assert rows[0] == rows[1]


def test_a_dictionary_and_a_tokenizer_with_a_byte_order_mark_give_the_same_rows(corpus, tmp_path):
    rows = []
    for mark in (b"", codecs.BOM_UTF8):
        tokenizer_file, dictionary = tmp_path / "tokenizer.json", tmp_path / "words.txt"
        tokenizer_file.write_bytes(mark + TOKENIZER.read_bytes())
        dictionary.write_bytes(mark + "卖菜的人\n".encode())
        output = tmp_path / f"rows-{len(rows)}"
        prepare(corpus, output, tokenizer_file=tokenizer_file, dictionary=dictionary)
        rows.append(shards_of(output))
    assert rows[0] == rows[1]
    prepare(corpus, tmp_path / "without")
    assert shards_of(tmp_path / "without") != rows[0]


def test_a_corpus_in_another_encoding_is_reported_once_with_its_encoding(tmp_path):
    content = write_corpus(tmp_path / "a.jsonl", many_texts(20)).read_text(encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes(content.encode("utf-16"))
    manifest = prepare(tmp_path, tmp_path / "rows", tasks=3)
    assert (manifest["documents"], manifest["bad_input"]) == (20, {"not UTF-8": 1})
    reports = (tmp_path / "rows.work" / "bad_input").iterdir()
    assert "b.jsonl: UTF-16, not UTF-8; convert" in "".join(map(Path.read_text, reports))
