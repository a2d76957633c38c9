"""The comparison: bits and characters, charged alike to both vocabularies."""

import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM

from corpora import TOKENIZER, write_corpus
from experiments.twin import compare
from experiments.twin.compare import Scores, Side, table, verdict
from experiments.twin.masked_words import Encoded, Piece
from experiments.twin.model import Shape
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM


@pytest.fixture(scope="module")
def bert(made_once, twin_workspace):
    """The folder of a twin with random weights."""

    def make(folder):
        shutil.copytree(twin_workspace / "tokenizer", folder, dirs_exist_ok=True)
        torch.manual_seed(0)
        vocab = len((twin_workspace / "vocab.txt").read_text(encoding="utf-8").splitlines())
        BertForMaskedLM(Shape(32, 2, 2, 64).config(vocab)).save_pretrained(folder)

    return made_once("twin-random", make)


@pytest.fixture(scope="module")
def ours(made_once, tiny_config):
    """The folder of a model of ours with random weights."""

    def make(folder):
        shutil.copy(TOKENIZER, folder / "tokenizer.json")
        torch.manual_seed(0)
        ChineseModernBertForMaskedLM(tiny_config(vocab_size=32_000)).save_pretrained(folder)

    return made_once("twin-ours", make)


def piece_of(side: Side, text: str, hidden: str, document: int = 0) -> Piece:
    """A piece for one side, in which one run of characters is masked."""
    encoding = side.tokenizer.encode(text, add_special_tokens=False)
    masked = np.zeros(len(text), dtype=bool)
    masked[text.index(hidden) : text.index(hidden) + len(hidden)] = True
    offsets = np.array(encoding.offsets)
    encoded = Encoded(np.array(encoding.ids), offsets, masked[offsets[:, 0]])
    return Piece(document, "diary (hans)", text, masked, (encoded,))


def test_bits_are_the_cross_entropy_of_the_masked_tokens(bert):
    side = Side(BertForMaskedLM, [bert])
    texts = ("姐姐在阳台上浇水。", "今天下了一场雨，明天可能还有雨。")
    pieces = [piece_of(side, texts[0], "阳台"), piece_of(side, texts[1], "雨")]
    scores = side.scores(pieces, 0, bert)
    model = BertForMaskedLM.from_pretrained(bert).eval()
    for piece, bits in zip(pieces, scores.bits, strict=True):
        ids = torch.tensor(side.tokenizer.encode(piece.text).ids)  # with [CLS] and [SEP]
        places = torch.tensor(np.flatnonzero(piece.sides[0].masked) + 1)
        shown = ids.clone()
        shown[places] = side.ids["mask_id"]
        nats = F.cross_entropy(model(shown[None]).logits[0, places], ids[places], reduction="sum")
        assert bits == pytest.approx(nats.item() / math.log(2), rel=1e-4)
    assert scores.unknown.tolist() == [0, 0]


def test_an_unknown_character_is_told_from_the_other_unknown_ones(bert):
    side = Side(BertForMaskedLM, [bert])
    # Three times 摊, once 溅: two bits tell the latter from the others.
    pieces = [piece_of(side, "摊主在地摊边上浇水，溅了一身，收摊。", "溅")]
    scores = side.scores(pieces, 0, bert)
    assert scores.unknown.tolist() == [1] and scores.right.tolist() == [0]
    nats, _ = side._predict(BertForMaskedLM.from_pretrained(bert).eval(), [pieces[0].sides[0]])
    assert scores.bits[0] == pytest.approx(nats[0].item() / math.log(2) + 2, rel=1e-4)


@pytest.mark.parametrize(
    ("hidden", "guesses", "right"),
    [
        ("我们", ["我们"], 2),
        ("我们", ["我"], 1),
        ("我们", ["他们"], 1),
        ("我们", ["[MASK]"], 0),
        ("𪚥", ["<0xF0>", "<0xAA>", "<0x9A>", "<0xA5>"], 1),
        ("𪚥", ["<0xF0>", "<0xAA>", "<0x9A>", "<0xA4>"], 0),
    ],
)
def test_a_character_is_right_where_the_predicted_tokens_spell_it(ours, hidden, guesses, right):
    side = Side(ChineseModernBertForMaskedLM, [ours])
    piece = piece_of(side, f"{hidden}，还有𪚥", hidden)
    predicted = np.array([side.tokenizer.token_to_id(guess) for guess in guesses])
    assert side._named(piece, piece.sides[0], predicted) == right


def scores_of(bits, right=(1, 1, 1)) -> Scores:
    return Scores(np.array(bits, dtype=float), np.array(right), np.zeros(3))


@pytest.fixture
def three_pieces():
    """Two documents: one of two pieces with 2 and 4 masked characters, one of a piece with 2."""
    return [
        Piece(number, domain, "字" * 10, np.arange(10) < masked, ())
        for number, domain, masked in ((0, "news", 2), (0, "news", 4), (1, "diary", 2))
    ]


def test_the_table_has_means_over_seeds_for_each_domain(three_pieces):
    sides = {
        "ours": [scores_of([4, 8, 4]), scores_of([6, 12, 2], right=(2, 2, 0))],
        "twin": [scores_of([10, 20, 10])],
    }
    lines = table(three_pieces, sides).splitlines()
    assert lines[2] == "| all | 8 | 0.00% | 0.00% | 43.8% | 37.5% | 2.250 | 5.000 |"
    assert lines[3] == "| diary | 2 | 0.00% | 0.00% | 25.0% | 50.0% | 1.500 | 5.000 |"
    assert lines[4] == "| news | 6 | 0.00% | 0.00% | 50.0% | 33.3% | 2.500 | 5.000 |"


def test_the_margin_counts_only_beyond_the_spread_of_the_seeds(three_pieces):
    ours = [scores_of([4, 8, 4]), scores_of([3, 7, 2])]  # 2.0 and 1.5 bits a character
    near = [scores_of([4, 8, 4]), scores_of([4, 9, 5])]  # 2.0 and 2.25
    far = [scores_of([8, 16, 8]), scores_of([8, 16, 8])]  # 4.0
    text = verdict(three_pieces, ours, near)
    assert "ours 2.000, 1.500; twin 2.000, 2.250" in text
    assert "ahead by 0.375" in text
    assert "the margin is not larger than the spread of the seeds, 0.500" in text
    assert "the margin is larger than" in verdict(three_pieces, ours, far)
    assert "no verdict, which needs two seeds a side" in verdict(three_pieces, ours[:1], far)


def test_the_error_is_over_documents(three_pieces):
    ours = [scores_of([4, 8, 4])] * 2
    twin = [scores_of([6, 10, 8])] * 2
    # Ahead by 4 bits in each document, 1 a character in all: residuals of 4 - 6 and 4 - 2.
    assert f"ahead by 1.000 ± {math.sqrt(8) / 8:.3f}" in verdict(three_pieces, ours, twin)


def test_the_command_compares_two_folders(ours, bert, tmp_path, monkeypatch, capsys):
    texts = ["早市六点开门，卖菜的人比买菜的人来得更早。" * 3, "读完这一页，把灯关上。" * 5]
    corpus = write_corpus(tmp_path / "held-out.jsonl", texts, domain="diary", script="hans")
    command = ["compare.py", "--ours", ours, ours, "--twin", bert, bert, "--corpus", corpus]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    compare.main()
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == ["held-out text", "all", "diary (hans)"]
    # Random weights know nothing: as many bits as a token of 32,000, or of the small vocabulary.
    by_seed = re.search(r"ours ([\d.]+), ([\d.]+); twin ([\d.]+), ([\d.]+)\n", printed)
    first, again, twin, _ = map(float, by_seed.groups())
    assert first == again and twin == pytest.approx(math.log2(1935), rel=0.15)
    assert "the spread of the seeds, 0.000" in printed


def test_seeds_of_a_side_share_a_tokenizer(ours, bert):
    with pytest.raises(ValueError, match="another tokenizer than"):
        Side(BertForMaskedLM, [bert, ours])
