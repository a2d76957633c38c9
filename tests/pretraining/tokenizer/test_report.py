"""What the report says about a tokenizer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from pretraining.data.corpus import Document
from pretraining.data.tokens import BYTE_TOKENS
from pretraining.tokenizer import report
from pretraining.tokenizer.report import as_markdown, embedding_share, measure, open_peer
from pretraining.tokenizer.vocabulary import shrink


@pytest.fixture
def tokenizer():
    """Knows 今天, 天下 and single characters, and spells 𠀀 in bytes."""
    entries = ["[UNK]", *BYTE_TOKENS, "今", "天", "下", "雨", "。", "天下"]
    model = models.BPE(
        {entry: index for index, entry in enumerate(entries)},
        [("天", "下")],
        unk_token="[UNK]",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


@pytest.fixture
def peer(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n今\n天\n下\n雨\n。\n", encoding="utf-8")
    return open_peer(str(file)).backend_tokenizer


def documents(*texts: str) -> list[Document]:
    return [Document(text, "weather", "hans", n) for n, text in enumerate(texts)]


def test_what_is_counted(tokenizer):
    """今天 下雨 𠀀 。 becomes 今, 天下, 雨, four bytes and 。: 天下 crosses a border."""
    report = measure({"own": tokenizer}, documents("今天下雨𠀀。"))
    assert report["weather, hans"]["own"] == {
        "characters": 6,
        "tokens": 8,
        "bytes": 4,
        "spelled": 1,
        "unknown": 0,
        "han": 3 + 4,
        "crossing": 1,
    }


def test_a_tokenizer_that_cuts_and_pads_counts_whole_texts(tokenizer):
    whole = measure({"own": tokenizer}, documents("今天下雨。", "雨。"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    assert measure({"own": tokenizer}, documents("今天下雨。", "雨。")) == whole


def test_others_lose_what_they_do_not_know(peer):
    counts = measure({"BERT": peer}, documents("今天下雪。"))["all"]["BERT"]
    assert (counts["tokens"], counts["unknown"], counts["bytes"]) == (5, 1, 0)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"今": 0, "<unk>": 1}, unk_token="<unk>"),
        models.Unigram([("今", -1.0), ("<unk>", -9.0)], unk_id=1),
    ],
)
def test_the_unknown_token_is_the_one_that_the_tokenizer_names(model):
    counts = measure({"other": Tokenizer(model)}, documents("雪"))["all"]["other"]
    assert counts["unknown"] == counts["tokens"] == 1


def test_merges_of_the_older_layout_are_kept_where_a_vocabulary_is_cut():
    vocabulary = {entry: index for index, entry in enumerate(["天", "下", "天下", "天下天"])}
    content = {"model": {"vocab": vocabulary, "merges": ["天 下", "天下 天"]}}
    shrink(content, 3)
    assert content["model"]["merges"] == [["天", "下"]]


def test_a_tokenizer_that_cannot_be_cut_has_its_table_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "LEGACY_SIZE", 1)
    entries = [(sign, -9.0) for sign in "?今天下雨了吗"]
    Tokenizer(models.Unigram(entries, unk_id=0)).save(f"{tmp_path}/t.json")
    report.print_report(tmp_path / "t.json", documents("今今"), {})
    assert "| all | 2 | 1.000 |" in capsys.readouterr().out


def test_the_table_has_a_line_for_every_stratum_and_one_for_all(tokenizer, peer):
    corpus = [*documents("今天下雨。", "雨。"), Document("下雨。", "diary", "hant", 1)]
    lines = as_markdown(measure({"own": tokenizer, "BERT": peer}, corpus)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| diary, hant", "3", "1.000"],
        ["| weather, hans", "7", "1.167"],
        ["| all", "10", "1.111"],
    ]


def test_the_embedding_takes_the_share_that_its_parameters_have():
    """28 layers of 1024 and 32,000 entries of 1,024: tied, so the decoder has none of its own."""
    share = embedding_share(32_000)
    assert share == pytest.approx(32_000 * 1024 / 377e6, rel=0.01)
    assert embedding_share(21_128) < share


def test_the_entries_of_a_vocabulary_have_the_numbers_of_their_lines(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n天\n", encoding="utf-8")
    vocabulary = open_peer(str(tmp_path / "vocab.txt")).get_vocab()
    assert [vocabulary.pop(token) for token in ("[PAD]", "[UNK]", "天")] == [0, 1, 2]
    assert set(vocabulary) == {"[CLS]", "[SEP]", "[MASK]"}  # which transformers adds


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt"),
        ("other.txt", "a\nb\n", "other.txt: no entry \\[UNK\\]"),
        ("utf16.txt", "[UNK]\na\n".encode("utf-16"), "utf16.txt: UTF-16, not UTF-8"),
    ],
)
def test_a_vocabulary_that_cannot_be_compared_with_is_named(tmp_path, name, content, message):
    if content:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        open_peer(str(tmp_path / name))


def test_a_folder_is_opened_without_running_its_code():
    peer = open_peer(str(Path(__file__).parents[3]))
    assert peer("[MASK]")["input_ids"] == [2, 4, 3]
