"""The scores: bits and characters, charged alike to both vocabularies."""

import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM

from commands import run_main
from corpora import TOKENIZER, write_corpus
from experiments.twin import score
from experiments.twin.masked_words import Encoded, Piece
from experiments.twin.model import Shape
from experiments.twin.score import Vocabulary, of_documents
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.files import read_json


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


def piece_of(vocabulary: Vocabulary, text: str, hidden: str, document: int = 0) -> Piece:
    """A piece in one tokenizer's tokens, in which one run of characters is masked."""
    encoding = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    masked = np.zeros(len(text), dtype=bool)
    masked[text.index(hidden) : text.index(hidden) + len(hidden)] = True
    offsets = np.array(encoding.offsets)
    encoded = Encoded(np.array(encoding.ids), offsets, masked[offsets[:, 0]])
    return Piece(document, "diary (hans)", text, masked, (encoded,))


@pytest.mark.parametrize("side", ["ours", "bert"])
def test_bits_are_the_cross_entropy_of_the_masked_tokens(side, ours, bert):
    kind, folder = {
        "ours": (ChineseModernBertForMaskedLM, ours),
        "bert": (BertForMaskedLM, bert),
    }[side]
    vocabulary = Vocabulary(folder / "tokenizer.json")
    texts = ("姐姐在阳台上浇水。", "今天下了一场雨，明天可能还有雨。")
    pieces = [piece_of(vocabulary, texts[0], "阳台"), piece_of(vocabulary, texts[1], "雨")]
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    all_bits, _, unknown = vocabulary.scores(model, pieces, 0)
    for piece, bits in zip(pieces, all_bits, strict=True):
        ids = [vocabulary.ids["cls_id"], *piece.sides[0].ids, vocabulary.ids["sep_id"]]
        ids = torch.tensor(ids)
        places = torch.tensor(np.flatnonzero(piece.sides[0].masked) + 1)
        shown = ids.clone()
        shown[places] = vocabulary.ids["mask_id"]
        nats = F.cross_entropy(model(shown[None]).logits[0, places], ids[places], reduction="sum")
        assert bits == pytest.approx(nats.item() / math.log(2), rel=1e-4)
    assert unknown.tolist() == [0, 0]


def test_an_unknown_character_is_told_from_the_other_unknown_ones(bert):
    vocabulary = Vocabulary(bert / "tokenizer.json")
    # Three times 摊, once 溅: two bits tell the latter from the others.
    pieces = [piece_of(vocabulary, "摊主在地摊边上浇水，溅了一身，收摊。", "溅")]
    model = BertForMaskedLM.from_pretrained(bert).eval()
    bits, right, unknown = vocabulary.scores(model, pieces, 0)
    assert unknown.tolist() == [1] and right.tolist() == [0]
    nats, _ = vocabulary._predict(model, [pieces[0].sides[0]])
    assert bits[0] == pytest.approx(nats[0].item() / math.log(2) + 2, rel=1e-4)


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
    vocabulary = Vocabulary(ours / "tokenizer.json")
    piece = piece_of(vocabulary, f"{hidden}，还有𪚥", hidden)
    predicted = np.array([vocabulary.tokenizer.token_to_id(guess) for guess in guesses])
    assert vocabulary._named(piece, piece.sides[0], predicted) == right


def test_scores_are_sums_over_the_pieces_of_a_document():
    pieces = [
        Piece(number, domain, "字" * 10, np.arange(10) < masked, ())
        for number, domain, masked in ((3, "news", 2), (3, "news", 4), (5, "diary", 2))
    ]
    scores = of_documents(
        pieces, np.array([4.0, 8.5, 3.0]), np.array([1, 2, 0]), np.array([0, 1, 1])
    )
    assert (scores.domains, scores.masked) == (["news", "diary"], [6, 2])
    assert (scores.bits, scores.right, scores.unknown) == ([12.5, 3.0], [3, 0], [1, 1])


@pytest.fixture
def held_out(tmp_path):
    """A file of two short documents."""
    texts = ["早市六点开门，卖菜的人比买菜的人来得更早。" * 3, "读完这一页，把灯关上。" * 5]
    return write_corpus(tmp_path / "held-out.jsonl", texts, domain="diary", script="hans")


def test_the_command_keeps_the_scores_of_a_model(ours, bert, held_out, tmp_path):
    kept = {}
    for name, folder in (("ours", ours), ("twin", bert)):
        file = tmp_path / f"{name}.json"
        command = [folder, "--tokenizers", ours, bert, "--corpus", held_out]
        run_main(score, *command, "--output", file)
        kept[name] = read_json(file)
    assert kept["ours"]["text"] == kept["twin"]["text"]
    assert kept["ours"]["domains"] == ["diary (hans)"] * 2
    assert kept["ours"]["masked"] == kept["twin"]["masked"] and len(kept["ours"]["masked"]) == 2
    # Random weights know nothing: as many bits as a token of the small vocabulary.
    twin = sum(kept["twin"]["bits"]) / sum(kept["twin"]["masked"])
    assert twin == pytest.approx(math.log2(1935), rel=0.15)
    assert kept["twin"]["made_with"]["torch"] == torch.__version__


def test_a_model_needs_one_of_the_two_tokenizers(ours, bert, held_out, twin_workspace):
    with pytest.raises(ValueError, match="neither of --tokenizers"):
        score.score(ours, [bert, twin_workspace / "tokenizer"], [str(held_out)])
