"""Passages with file and line, an index that a failed build leaves alone, and three rankings."""

import codecs
import io
import json
import os
import shutil
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from commands import run_main
from embedding import search, search_index
from embedding.encoder import Opening
from embedding.passages import read_passages
from embedding.search import LOCK, UNFINISHED, Searcher
from embedding.search_index import RANK_CONSTANT, SearchIndex
from modeling_chinese_modernbert import ChineseModernBertModel
from pretraining.data.corpus import CorpusError

ROOT = Path(__file__).parent.parent.parent
LINES = [
    "图书馆每天上午九点开门，晚上八点关门。",
    "磨坊建在河边，已经一百年了。",
    "面条要煮五分钟。",
]


call = partial(run_main, search)


@pytest.fixture
def build(tiny_encoder, tmp_path):
    """Returns `build(lines, name, command)`: indexes a text file of lines; gives the index."""

    def run(lines=LINES, name="index", command="build") -> Path:
        file = tmp_path / f"{command}.txt"
        file.write_text("\n".join(lines), encoding="utf-8")
        call(command, file, "--index", tmp_path / name, "--model", tiny_encoder)
        return tmp_path / name

    return run


# --- passages -----------------------------------------------------------------------------------


def test_a_passage_knows_its_file_and_line(tmp_path):
    notes, faq, more = (tmp_path / name for name in ("notes.txt", "faq.csv", "more.jsonl"))
    notes.write_text("\ufeff第一行在这里。\n\n第三行在这里。\n", encoding="utf-8")
    faq.write_text('\nid,text\n1,"怎么还书？\n放回书架。"\n2,几点关门？\n', encoding="utf-8")
    more.write_text('{"text": "头一句话。\\n第二句话。"}\n{"text": "另一条。"}\n', encoding="utf-8")
    found = [
        (each.text, Path(each.file).name, each.line) for each in read_passages([notes, faq, more])
    ]
    assert found == [
        ("第一行在这里。", "notes.txt", 1),
        ("第三行在这里。", "notes.txt", 3),
        ("怎么还书？", "faq.csv", 4),
        ("放回书架。", "faq.csv", 4),
        ("几点关门？", "faq.csv", 5),
        ("头一句话。", "more.jsonl", 1),
        ("第二句话。", "more.jsonl", 1),
        ("另一条。", "more.jsonl", 2),
    ]


def test_folders_and_patterns_name_tables_too_and_tabs_alone_part_a_tsv(tmp_path):
    (tmp_path / "notes.txt").write_text("第一行在这里。", encoding="utf-8")
    (tmp_path / "faq.csv").write_text("text\n几点关门？\n", encoding="utf-8")
    (tmp_path / "more.tsv").write_text('text\n"几点开门\n下一行。\n', encoding="utf-8")
    found = [(each.text, Path(each.file).name) for each in read_passages([str(tmp_path)])]
    assert found == [
        *(("几点关门？", "faq.csv"), ('"几点开门', "more.tsv"), ("下一行。", "more.tsv")),
        ("第一行在这里。", "notes.txt"),
    ]
    (table,) = read_passages([f"{tmp_path}/*.csv"])
    assert table.text == "几点关门？"
    assert len(list(read_passages([f"{tmp_path}/*"]))) == 4


def test_a_record_whose_text_is_none_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "第一。"}\n{"text": 2024}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 2: .* must be a text, got 2024"):
        list(read_passages([str(tmp_path)]))


def test_empty_records_are_passed_over_and_empty_files_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": null}\n{"text": "第三。"}\n', "utf-8")
    (tmp_path / "c.csv").mkdir()
    (tmp_path / "d.csv").write_text('id,text\n1,\n2,"第三行。"\n', encoding="utf-8")
    found = [(each.text, each.line) for each in read_passages([str(tmp_path)])]
    assert found == [("第三。", 3), ("第三行。", 3)]
    assert capsys.readouterr().err == f"left out, no text: {tmp_path / 'a.txt'}\n"


def test_keys_that_search_does_not_use_may_hold_anything(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "新闻。", "domain": ["新闻"]}\n', "utf-8")
    assert [each.text for each in read_passages([tmp_path / "a.jsonl"])] == ["新闻。"]


def test_the_last_ending_says_what_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.txt").write_text("第一行。\n第二行。\n", encoding="utf-8")
    (tmp_path / "B.CSV").write_text("text\n第三行。\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = [(each.file, each.line) for each in read_passages(["a.jsonl.txt", "B.CSV"])]
    text, table = str(tmp_path / "a.jsonl.txt"), str(tmp_path / "B.CSV")
    assert found == [(text, 1), (text, 2), (table, 2)]


@pytest.mark.parametrize("name", ["notes[2026].txt", "faq[1].csv", "folder[1]/notes.txt"])
def test_a_name_that_reads_like_a_pattern_is_taken_as_it_is(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("text\n几点开门？\n", encoding="utf-8")
    asked = tmp_path / name.split("/")[0]
    assert "几点开门？" in [passage.text for passage in read_passages([str(asked)])]


# --- what is found ------------------------------------------------------------------------------


def test_each_way_finds_a_passage_and_says_where_it_stands(build, tmp_path, capsys):
    index = build()
    for way in search.WAYS:
        capsys.readouterr()
        call("query", LINES[1], "--index", index, "--by", way, "--top", 1)
        shown = capsys.readouterr().out
        assert LINES[1] in shown and f"{tmp_path / 'build.txt'}, line 2" in shown


def test_questions_come_from_standard_input_too(build, monkeypatch, capsys):
    index = build()
    monkeypatch.setattr(sys, "stdin", iter(["磨坊\n", "\n", "面条\n"]))
    capsys.readouterr()
    call("query", "--index", index, "--by", "words")
    assert [line[11:] for line in capsys.readouterr().out.splitlines() if " 1  " in line] == [
        LINES[1],
        LINES[2],
    ]


def test_the_graph_finds_what_comparing_with_all_finds(build):
    searcher = Searcher(build([f"第{number}封信在{number * 7}号箱里。" for number in range(200)]))
    vector = searcher.model.encode_query("第150封信在哪里", normalize_embeddings=True)
    graph, exact = (searcher.index.by_vector(vector, 10, exact=exact) for exact in (False, True))
    assert graph == exact
    texts = [passage.text for passage in searcher.index.passages()]
    cosines = searcher.model.encode_document(texts, normalize_embeddings=True) @ vector
    assert [score for _, score in exact] == pytest.approx(np.sort(cosines)[::-1][:10], abs=2e-3)


def test_few_passages_are_all_compared_and_many_found_by_the_graph(build, monkeypatch):
    index = SearchIndex.open(build())
    find, compared = index.graph.search, []

    def search(vector, top, exact):
        compared.append(exact)
        return find(vector, top, exact=exact)

    monkeypatch.setattr(index, "graph", SimpleNamespace(search=search))
    vector = np.ones(index.note.size, dtype=np.float32)
    index.by_vector(vector, 1)
    monkeypatch.setattr(search_index, "EXACT_UP_TO", 1)
    index.by_vector(vector, 1)
    assert compared == [True, False]


def test_hybrid_adds_reciprocal_ranks(build, monkeypatch):
    index = SearchIndex.open(build())
    monkeypatch.setattr(index, "by_vector", lambda vector, top: [(0, 0.9), (1, 0.8)])
    monkeypatch.setattr(index, "by_words", lambda query, top: [(2, 7.0), (1, 5.0)])
    first, second = 1 / (RANK_CONSTANT + 1), 1 / (RANK_CONSTANT + 2)
    assert index.hybrid("", None, 3) == [(1, 2 * second), (0, first), (2, first)]


def test_words_are_found_whatever_their_case_and_width(build):
    searcher = Searcher(build([*LINES, "我们用Python写脚本。"]))
    for query in ("python", "ＰＹＴＨＯＮ"):
        found = [hit.passage.text for hit in searcher.search(query, by="words")]
        assert found == ["我们用Python写脚本。"]


def test_words_that_no_passage_has_find_nothing(build, capsys):
    index = build()
    call("query", "xylophone", "--index", index, "--by", "words")
    assert "Nothing found." in capsys.readouterr().out


# --- building and adding ------------------------------------------------------------------------


def test_added_files_stand_behind_the_old_ones_and_repeated_passages_count_once(build, capsys):
    index = build([*LINES, LINES[0]])
    assert "repeated ones left out: 1" in capsys.readouterr().out
    build(["楼下新开了一家面馆。", LINES[0]], command="add")
    searcher = Searcher(index)
    assert [each.text for each in searcher.index.passages()] == [*LINES, "楼下新开了一家面馆。"]
    for way in search.WAYS:
        for text in ("楼下新开了一家面馆。", LINES[2]):
            assert searcher.search(text, 1, way)[0].passage.text == text
    build([LINES[0]], command="add")
    assert "Nothing new" in capsys.readouterr().out
    assert [path.name for path in index.glob("*generation*")] == ["generation-2"]


def test_a_killed_build_leaves_the_old_index_and_goes_on(build, monkeypatch):
    index = build()
    lines = [f"第{number}封信。" for number in range(6)]
    encoded, encode = [], search.SentenceTransformer.encode

    def dying(self, sentences, **options):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.extend(sentences)
        return encode(self, sentences, **options)

    monkeypatch.setattr("embedding.distill.BLOCK", 2)
    with monkeypatch.context() as patch:
        patch.setattr(search.SentenceTransformer, "encode", dying)
        with pytest.raises(KeyboardInterrupt):
            build(lines)
    assert Searcher(index).search(LINES[1], 1)[0].passage.text == LINES[1]

    def counting(self, sentences, **options):
        encoded.extend(sentences)
        return encode(self, sentences, **options)

    monkeypatch.setattr(search.SentenceTransformer, "encode", counting)
    build(lines)
    assert encoded == lines
    assert [each.text for each in SearchIndex.open(index).passages()] == lines
    assert not (index / UNFINISHED).exists()


def test_an_index_that_is_replaced_while_it_is_opened_opens_as_the_new_one(build, monkeypatch):
    index, read_note = build(), search_index.read_note

    def read_and_replace(folder: Path):
        note = read_note(folder)
        monkeypatch.setattr(search_index, "read_note", read_note)
        build(LINES[:2])
        return note

    monkeypatch.setattr(search_index, "read_note", read_and_replace)
    assert SearchIndex.open(index).note.passages == 2


def test_a_full_disk_leaves_the_old_index(build, monkeypatch):
    index = build()
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
        with pytest.raises(SystemExit, match="Make room"):
            build(["别的句子。"])

    def full(file, *rest):
        raise OSError(f"{file}: no space left")

    monkeypatch.setattr(search_index, "_write_graph", full)
    for command in ("build", "add"):
        with pytest.raises(SystemExit, match="no space left"):
            build(["别的句子。"], command=command)
        assert [each.text for each in SearchIndex.open(index).passages()] == LINES


def test_only_one_build_at_a_time(build, tmp_path):
    index = build()
    with FileLock(index / LOCK), pytest.raises(SystemExit, match="another build"):
        build(["别的句子。"])


# --- what is refused ----------------------------------------------------------------------------

BAD_FILES = {
    "empty.txt": (b"", "empty.txt"),
    "blank.txt": (b" \n\n", "holds no text"),
    "latin.txt": ("café".encode("latin-1"), "latin.txt: not UTF-8"),
    "latin.csv": ("text\ncafé".encode("latin-1"), "latin.csv: not UTF-8"),
    "columns.csv": ("问题,答案\n几点,九点\n".encode(), "no column 'text' .there: 问题, 答案"),
    "short.csv": (b"id,text\n1,a\n2\n", "short.csv, line 3: fewer cells than the 2 of the header"),
    "long.csv": (b"id,text\n1,a,b,\n", "long.csv, line 2: more cells than the 2 .* double quotes"),
    "long.tsv": (b"id\ttext\n1\ta\tb\n", "long.tsv, line 2: more cells .* correct the line.$"),
    "quotes.csv": ('text\n"他说\n好"的\n'.encode(), "quotes.csv, line 3: .* put in quotes itself"),
    "header.csv": (b"id,text\n", "holds no text"),
    "broken.jsonl": (b'{"text": "a"}\n{"text"\n', "broken.jsonl, line 2"),
    "key.jsonl": (b'{"question": "a"}\n', "no field 'text' .there: question"),
    "picture.png": (b"\x89PNG", "not a kind of corpus file"),
    "nowhere.csv": (None, "nowhere.csv: there is no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_the_old_index_stays(name, build, tiny_encoder, tmp_path):
    index = build()
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        call("build", tmp_path / name, "--index", index, "--model", tiny_encoder)
    assert [each.text for each in SearchIndex.open(index).passages()] == LINES


def test_code_that_an_index_brings_does_not_run_unasked(tiny_encoder, tmp_path, capsys):
    """An index may come from a stranger, and names its model itself."""
    stranger, file = tmp_path / "stranger", tmp_path / "a.txt"
    shutil.copytree(tiny_encoder, stranger)
    (stranger / "evil.py").write_text("")
    file.write_text("几点关门？", encoding="utf-8")
    call("build", file, "--index", tmp_path / "index", "--model", stranger)
    for by in ("hybrid", "words"):
        with pytest.raises(SystemExit, match=f"would run. If you trust .* --model {stranger}"):
            call("query", "门", "--index", tmp_path / "index", "--by", by)
    call("query", "门", "--index", tmp_path / "index", "--model", stranger)
    assert "几点关门？" in capsys.readouterr().out
    settings = json.loads((tiny_encoder / "config.json").read_text())
    (stranger / "evil.py").unlink()
    settings["auto_map"] = {"AutoModel": "user/elsewhere--evil.Model"}
    assert Opening.of(str(stranger)).brings_known_code()
    (stranger / "config.json").write_text(json.dumps(settings))
    assert not Opening.of(str(stranger)).brings_known_code()
    # In a module's folder it runs as well, through a link, too.
    (tmp_path / "module").mkdir()
    (stranger / "config.json").rename(tmp_path / "module/config.json")
    shutil.copy(tiny_encoder / "config.json", stranger)
    assert Opening.of(str(stranger)).brings_known_code()
    (stranger / "0_Transformer").symlink_to(tmp_path / "module")
    assert not Opening.of(str(stranger)).brings_known_code()


@pytest.mark.parametrize("name", ["unfinished", "generation-1", "generation-one"])
def test_a_folder_of_its_user_s_is_no_remnant_of_a_build(tiny_encoder, tmp_path, name):
    photo = tmp_path / "album" / name / "photo.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"photo")
    (tmp_path / "a.txt").write_text("几点关门？", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"album holds {name}, no index"):
        call("build", tmp_path / "a.txt", "--index", tmp_path / "album", "--model", tiny_encoder)
    assert photo.read_bytes() == b"photo"


def test_a_file_whose_name_is_not_utf8_is_named_before_the_work(tiny_encoder, tmp_path):
    (tmp_path / "notes").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/notes/\xd1\xe9.txt")).write_text("a")
    with pytest.raises(SystemExit, match=r"notes/.*a file name that is not UTF-8"):
        call("build", tmp_path / "notes", "--index", tmp_path / "i", "--model", tiny_encoder)


def test_an_index_of_another_model_is_refused(build, tiny_encoder, make_model, tmp_path):
    index = build()
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder, other)
    make_model(cls=ChineseModernBertModel, vocab_size=32_000, seed=1).save_pretrained(other)
    for command in (("query", "书"), ("add", tmp_path / "build.txt")):
        with pytest.raises(SystemExit, match="another model, other weights or prompts"):
            call(*command, "--index", index, "--model", other)
    shutil.copytree(tiny_encoder, tmp_path / "moved")
    call("query", "书", "--index", index, "--model", tmp_path / "moved")
    settings = {"prompts": {"query": "查询："}}
    (tmp_path / "moved/config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="another model, other weights or prompts"):
        call("query", "书", "--index", index, "--model", tmp_path / "moved")


def test_an_index_of_shorter_vectors_knows_their_size(tiny_encoder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("\n".join(LINES), encoding="utf-8")
    model = f"{tiny_encoder}@16"
    call("build", tmp_path / "notes.txt", "--index", tmp_path / "index", "--model", model)
    call("query", LINES[1], "--index", tmp_path / "index", "--by", "vectors", "--top", 1)
    assert LINES[1] in capsys.readouterr().out


def test_an_index_finds_its_model_from_any_folder(tiny_encoder, tmp_path, monkeypatch, capsys):
    """A folder may be called like one of shorter vectors, and be named from where one stands."""
    shutil.copytree(tiny_encoder, tmp_path / "mine@2")
    (tmp_path / "notes.txt").write_text("\n".join(LINES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    call("build", "notes.txt", "--index", "index", "--model", "mine@2")
    monkeypatch.chdir(tmp_path / "index")
    call("query", LINES[1], "--index", tmp_path / "index", "--by", "vectors", "--top", 1)
    assert LINES[1] in capsys.readouterr().out


def test_models_of_other_runs_in_its_folder_do_not_make_a_model_another(tiny_encoder, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(tiny_encoder, checkout)
    before = Opening.of(str(checkout)).fingerprint()
    shutil.copytree(tiny_encoder, checkout / "runs/other")
    assert Opening.of(str(checkout)).fingerprint() == before
    (checkout / "2_Dense").mkdir()
    (checkout / "2_Dense/model.safetensors").write_bytes(b"its own module")
    with_dense = Opening.of(str(checkout)).fingerprint()
    assert with_dense != before
    (checkout / "query_0_Transformer").mkdir()  # of a Router
    (checkout / "query_0_Transformer/model.safetensors").write_bytes(b"its own module")
    assert Opening.of(str(checkout)).fingerprint() not in (before, with_dense)


def test_what_is_no_index_is_refused(build, tmp_path):
    with pytest.raises(SystemExit, match="holds no index"):
        call("query", "书", "--index", tmp_path / "nowhere")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/letter.txt").write_text("别删我。", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"holds letter.txt, no index"):
        build()
    assert (tmp_path / "index/letter.txt").exists()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.json").write_text('{"pages": 3}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"is not the note of an index .* name another folder"):
        build(name="site")
    assert not (tmp_path / "site/unfinished").exists()


def test_an_index_does_not_lie_among_its_sources(build, tiny_encoder, tmp_path, capsys):
    build()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("图书馆九点关门。", encoding="utf-8")
    (tmp_path / "notes/b.md").write_text("# 笔记", encoding="utf-8")
    command = "build", tmp_path / "notes", "--model", tiny_encoder, "--index"
    with pytest.raises(SystemExit, match=r"index lies in .*notes, so the index would be read"):
        call(*command, tmp_path / "notes/index")
    call(*command, tmp_path / "other")
    assert "left out, no text files: 1 × .md" in capsys.readouterr().err


@pytest.mark.parametrize("part", [search_index.VECTORS, search_index.STARTS, "index.json"])
def test_a_damaged_index_says_so(part, build):
    index = build()
    file = next(index.rglob(part))
    file.write_bytes(b"{}" if part == "index.json" else file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"damaged|not the note of an index"):
        SearchIndex.open(index)


def test_an_unknown_way_is_refused(build):
    with pytest.raises(ValueError, match="by: 'vector'; one of hybrid, vectors, words expected"):
        search.Searcher(build()).search("书", by="vector")


def test_a_folder_within_an_index_that_is_no_part_of_it_is_left_alone(build):
    index = build()
    (index / "unfinished").mkdir()
    (index / "unfinished/photo.jpg").write_bytes(b"photo")
    with pytest.raises(SystemExit, match="unfinished is no part of the index; move it away"):
        build()
    assert (index / "unfinished/photo.jpg").read_bytes() == b"photo"


def test_an_empty_question_is_refused(build):
    index = build()
    with pytest.raises(SystemExit, match="question is empty"):
        call("query", " ", "--index", index)
    with pytest.raises(SystemExit, match="not text in UTF-8"):
        call("query", "\udccd", "--index", index)


def test_a_line_that_is_no_text_does_not_end_the_questions(build, monkeypatch, capsys):
    index = build()
    lines = io.BytesIO(codecs.BOM_UTF8 + "磨坊".encode("gb18030") + "\n面条\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding="ascii"))
    call("query", "--index", index, "--by", "words", "--top", 1)
    shown = capsys.readouterr()
    assert "not text in UTF-8" in shown.err and LINES[2] in shown.out


def test_opening_of_a_folder_without_a_model_comes_before_reading(tmp_path):
    with pytest.raises(SystemExit, match="no such folder"):
        call("build", "nowhere.txt", "--index", tmp_path / "index", "--model", "./nowhere")
    assert not (tmp_path / "index").exists()
