"""Shown rows can be read back, masks are those of the collator, and statistics are right."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from commands import run_main
from data_collator_wwm import IGNORED, split_row
from pretraining import inspect_rows
from pretraining.data.display import collator_of, show_row, visible
from pretraining.data.encoding import open_with_tokenizer
from pretraining.data.preparation import Preparation
from pretraining.data.rows import open_rows
from pretraining.inspect_rows import count_rows
from row_sets import write_rows

ROOT = Path(__file__).parents[2]
SEQ_LEN = 64
PAD, CLS, SEP, MASK = 0, 2, 3, 4
TEXTS = [
    "下班路上买了两斤橘子，剥开一个，酸得直眯眼。",
    "说明书写着：\r\n\t按住开关 3 秒，灯变绿 ␣ 就好。\n\n路径是 C:\\new ┊ ‹完›",
    "她的名字里有个𠮷字，又有个𪚥字。",
    "快递单号是 zxqjvkwzxqjvkwzxqjvkwzxqjvkw，收件人写错了。",  # a unit of more than 16 tokens
    "红字\x1b[31m、反向\u202e和全角\u3000空格。",
    "楼下的面馆换了老板，汤还是原来的味道。" * 9,  # longer than a row
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS)
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Preparation(
        [str(folder / "corpus.jsonl")], ROOT / "tokenizer.json", SEQ_LEN, folder / "rows"
    ).run()
    return folder / "rows"


@pytest.fixture(scope="module")
def opened(folder):
    return open_with_tokenizer(folder, ROOT / "tokenizer.json")


@pytest.fixture
def command(capsys):
    """Returns `command(*arguments)`: runs the command and returns what it printed."""

    def run(*arguments) -> str:
        run_main(inspect_rows, *arguments)
        return capsys.readouterr().out

    return run


def plain(opened, index: int) -> str:
    rows, tokenizer = opened
    return show_row(rows, index, tokenizer, mask_rate=None, seed=0, color=False)


def one_row(folder: Path, row: list[int], manifest: dict):
    """A row set that holds this row alone, as if it had been prepared."""
    kept = ("special_token_ids", "vocab_size", "first_ordinary_id")
    write_rows(folder, [np.array(row, np.uint16)], len(row), {key: manifest[key] for key in kept})
    return open_rows(folder)


def read_back(shown: str) -> list[str]:
    """The documents of a row, from what is shown of it without a mask."""
    documents = re.split(r"── document \d+: .* ──\n", shown.split("── padding")[0])[1:]
    for mark, text in (("\n", ""), (" ", ""), ("┊", ""), ("␣", " ")):
        documents = [document.replace(mark, text) for document in documents]
    return [
        document.encode("latin-1", "backslashreplace").decode("unicode_escape")
        for document in documents
    ]


def test_every_text_can_be_read_back(opened):
    pieces = [piece for i in range(len(opened[0])) for piece in read_back(plain(opened, i))]
    assert sorted(piece for piece in pieces if piece not in TEXTS[-1]) == sorted(TEXTS[:-1])
    assert "".join(piece for piece in pieces if piece in TEXTS[-1]) == TEXTS[-1]


def test_words_tokens_and_documents_are_separated(opened, tmp_path):
    rows, tokenizer = opened
    word, start = tokenizer.token_to_id, 1 << 15
    row = [CLS, word("橘") | start, word("子"), word("很") | start, word("酸") | start, SEP]
    row += [CLS, word("\n") | start, word("好") | start, SEP, PAD, PAD]
    shown = plain((one_row(tmp_path / "rows", row, rows.manifest), tokenizer), 0)
    assert shown.splitlines() == [
        f"{tmp_path / 'rows'}, row 0 of 0 to 0; documents: 2",
        "── document 1: 4 tokens, 4 characters ──",
        "橘┊子 很 酸",
        "── document 2: 2 tokens, 2 characters ──",
        "\\n",
        "好",
        "── padding: 2 tokens ──",
    ]


def test_bytes_show_as_their_character_where_it_is_complete(opened, tmp_path):
    rows, tokenizer = opened
    bytes_of = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "𠮷".encode()]
    row = [CLS, *bytes_of[2:], *bytes_of, *bytes_of[:3], SEP]
    shown = plain((one_row(tmp_path / "rows", row, rows.manifest), tokenizer), 0)
    assert shown.splitlines()[2] == "<0xAE>┊<0xB7>┊𠮷┊┊┊┊<0xF0>┊<0xA0>┊<0xAE>"


def test_nothing_in_a_text_controls_the_terminal(opened):
    shown = "\n".join(plain(opened, index) for index in range(len(opened[0])))
    assert r"\x1b" in shown
    assert r"\u202e" in shown
    assert not set("\x1b\u202e\u3000\r\t") & set(shown)


def test_any_row_can_be_shown(opened, tmp_path):
    rows, tokenizer = opened
    row = np.random.default_rng(0).integers(0, 1 << 16, 5000)
    row[::7] = np.random.default_rng(1).integers(0, 400, len(row[::7]))  # more special ids, bytes
    rows = one_row(tmp_path / "rows", row.tolist(), rows.manifest)
    for rate in (None, 0.3):
        shown = show_row(rows, 0, tokenizer, rate, 0, color=False)
        assert re.search(r"<32[0-7]\d\d>", shown)  # an id beyond the vocabulary


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 1.0])
def test_as_many_tokens_are_marked_as_the_rate_says(opened, rate):
    rows, tokenizer = opened
    for index in range(len(rows)):
        ids, _ = split_row(rows[index])
        text = show_row(rows, index, tokenizer, rate, 0, color=False).partition("── document")[2]
        assert text.count("‹") == round(rate * (~np.isin(ids, [PAD, CLS, SEP])).sum())


def test_marks_show_what_the_collator_did_with_each_token(opened):
    rows, tokenizer = opened
    seen = set()
    index = next(i for i in range(len(rows)) if "面馆" in read_back(plain(opened, i))[0])
    for seed in range(20):
        shown = show_row(rows, index, tokenizer, 0.3, seed, color=False)
        batch = collator_of(rows, 0.3, seed)([{"row": rows[index], "position": index}])
        inputs, labels = batch["input_ids"][0], batch["labels"][0]
        masked = labels != IGNORED
        expected = []
        for token, label in zip(inputs[masked].tolist(), labels[masked].tolist(), strict=True):
            original, replacement = (
                visible(tokenizer.id_to_token(each)) for each in (label, token)
            )
            kind = "mask" if token == MASK else "kept" if token == label else "random"
            seen.add(kind)
            ending = {"mask": "", "kept": "=", "random": f"→{replacement}"}[kind]
            expected.append(f"‹{original}{ending}›")
        assert re.findall("‹.*?›", shown.partition("── document")[2]) == expected
    assert seen == {"mask", "kept", "random"}


def test_colors_replace_the_marks_on_a_terminal_that_wants_them(folder, command, monkeypatch):
    arguments = (folder, "--tokenizer", ROOT, "--row", 0, "--mask_rate", 0.3)
    monkeypatch.delenv("NO_COLOR", raising=False)
    marked = command(*arguments)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    colored = command(*arguments)
    assert "\x1b[" not in marked
    assert re.sub("\x1b\\[3[123]m(.*?)\x1b\\[0m", r"‹\1›", colored) == marked
    assert "‹" not in colored
    monkeypatch.setenv("NO_COLOR", "1")
    assert command(*arguments) == marked


def test_statistics_are_those_of_a_plain_count(opened):
    rows, tokenizer = opened
    texts, pieces, starts, spelled, padding, per_row, units = 0, [], 0, 0, 0, [], []
    for index in range(len(rows)):
        per_row.append(0)
        for token in rows[index].tolist():
            token, start = token & 0x7FFF, token >> 15
            if token == CLS:
                per_row[-1] += 1
                pieces.append(0)
                units.append(0)
            elif token == PAD:
                padding += 1
            elif token != SEP:
                texts += 1
                pieces[-1] += 1
                starts += start
                spelled += bool(re.fullmatch("<0x..>", tokenizer.id_to_token(token)))
                if start or units[-1] == 16:
                    units.append(0)
                units[-1] += 1
    totals, lengths = count_rows(rows, tokenizer)
    assert totals == {"text": texts, "padding": padding, "word starts": starts, "bytes": spelled}
    assert spelled > 0
    assert max(units) == 16
    for counts, values in zip(
        lengths.values(), (pieces, per_row, filter(None, units)), strict=True
    ):
        values = sorted(values)
        assert np.repeat(np.arange(len(counts)), counts).tolist() == values
        for percent in inspect_rows.PERCENTS:
            rank = max(1, math.ceil(percent * len(values) / 100))
            assert inspect_rows.percentile(counts, percent) == values[rank - 1]


def test_the_statistics_are_printed_and_drawn(folder, command, tmp_path):
    picture = tmp_path / "rows.png"
    shown = command(folder, "--tokenizer", ROOT, "--statistics", "--picture", picture)
    assert re.search(rf"^documents +{len(TEXTS)}$", shown, re.MULTILINE)
    assert re.search(rf"^unknown \(unknown\) +{len(TEXTS)} ", shown, re.MULTILINE)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_manifests_domains_have_a_table(folder, command, tmp_path):
    rows = shutil.copytree(folder, tmp_path / "rows")
    manifest = json.loads((rows / "manifest.json").read_text(encoding="utf-8"))
    manifest["domains"] = {"letters": {"documents": 3, "tokens": 1234}, "food": {"documents": 2}}
    (rows / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = command(rows, "--tokenizer", ROOT, "--statistics").splitlines()[-3:]
    expected = [["domain", "documents", "tokens"], ["letters", "3", "1,234"], ["food", "2"]]
    assert [line.split() for line in lines] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "999"], r"rows: there is no row 999; choose one from 0 to \d+\.$"),
        (["--row", "-1"], r"there is no row -1"),
        (["--row", "0", "--mask_rate", "30"], r"mask rate 30.0: it must lie between 0 and 1\.$"),
        (["--row", "0", "--tokenizer", "nowhere"], r"nowhere/tokenizer.json: no such tokenizer"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(folder, command, arguments, message):
    with pytest.raises(SystemExit, match=f"^inspect_rows: .*{message}"):
        command(folder, "--tokenizer", ROOT, *arguments)


def test_a_folder_that_is_not_a_row_set_is_refused(folder, command, tmp_path):
    for path in (tmp_path, folder / "rows-00000-00000.arrow"):
        with pytest.raises(SystemExit, match=f"^inspect_rows: {path} is not a row set"):
            command(path, "--tokenizer", ROOT, "--statistics")


def test_another_tokenizer_is_refused_before_the_shards_are_read(folder, command, tmp_path):
    rows = shutil.copytree(folder, tmp_path / "rows")
    (rows / "rows-00000-00000.arrow").unlink()
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SystemExit, match=r"made with another tokenizer than .*tokenizer\.json"):
        command(rows, "--tokenizer", tmp_path, "--row", 0)
