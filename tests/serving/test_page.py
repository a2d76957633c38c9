"""What the demo page computes, without the page."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from serving import page, page_html, page_search
from serving.model_folder import ModelFolder, Pooling
from serving.page import PageError
from serving.page_search import SearchIndex, read_passages, split_passages
from serving.runtime import Fill, Runtime, torch_forward

ROOT = Path(__file__).resolve().parent.parent.parent
SENTENCE = "他们在河边的小屋里住了整整一个夏天。"


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("eager", ChineseModernBertForMaskedLM, vocab_size=32_000)


@pytest.fixture(scope="module")
def runtime(model) -> Runtime:
    """A tiny masked language model with the tokenizer at the root."""
    folder = ModelFolder(ROOT, model.config.to_dict(), "ForMaskedLM", None, 8192)
    return Runtime(folder, torch_forward(model))


@pytest.fixture(scope="module")
def embedder(model) -> Runtime:
    """Vectors of the same model: the mean of its embeddings, so that equal texts are equal."""
    table = model.model.embeddings.tok_embeddings.weight.detach().numpy()

    def forward(ids, mask):
        vectors = (table[ids] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return {"token_embeddings": table[ids], "sentence_embedding": vectors}

    folder = ModelFolder(ROOT, model.config.to_dict(), "Model", Pooling("mean", False), 8192)
    return Runtime(folder, forward)


# --- what is read -------------------------------------------------------------------------------


def test_a_model_that_does_not_know_its_mask_says_how_to_fix_it(runtime):
    nameless = replace(runtime.folder, config=runtime.folder.config | {"mask_token_id": None})
    with pytest.raises(ValueError, match=r"config\.json has no mask_token_id: set it"):
        Runtime(nameless, runtime.forward).fill_masks(["今天[MASK]雨。"])


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
def test_nothing_is_no_input(runtime, text):
    with pytest.raises(PageError, match="enter some text"):
        page.read_input(text, runtime.tokenizer, 10)


def test_a_long_text_is_cut_between_tokens_and_what_is_lost_is_counted(runtime):
    text = "😊" * 3 + SENTENCE * 1000  # an emoji is one token or several bytes
    for size in range(3, 20):
        read = page.read_input(text, runtime.tokenizer, size)
        assert text.startswith(read.text)
        assert read.dropped == len(text) - len(read.text)
        assert len(runtime.tokenizer.encode(read.text).ids) <= size
    whole = page.read_input(SENTENCE, runtime.tokenizer, 100)
    assert (whole.text, whole.dropped) == (SENTENCE, 0)


def test_a_tokenizer_with_tokens_for_long_runs_of_spaces_reads_no_more(runtime):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "好": 1}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    read = page.read_input(" " * 5000 + "好 " * 5000, tokenizer, 100)
    assert (len(read.text), read.dropped) == (1600, 13_400)


def test_a_token_of_bytes_is_shown_as_text_and_a_part_of_a_character_by_its_name(runtime):
    tokenizer = Tokenizer(models.BPE({"å¥½": 0, "å": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    other = Runtime(runtime.folder, runtime.forward)
    other.tokenizer = tokenizer
    assert [other.token_text(token) for token in (0, 1, 2)] == ["好", "å", "[2]"]
    ids = runtime.tokenizer.encode("[MASK]好\x00").ids
    assert [runtime.token_text(token) for token in ids[1:3]] == ["[MASK]", "好"]


def test_an_unpaired_surrogate_is_replaced(runtime):
    assert page.read_input("好\ud83d好", runtime.tokenizer, 10).text == "好\ufffd好"


# --- fills --------------------------------------------------------------------------------------


def test_fills_stand_between_the_parts_of_the_text(runtime):
    result = page.fill_masks(runtime, "今天[MASK]气很好，我们去[MASK]步。", top=3)
    assert result.parts == ["今天", "气很好，我们去", "步。"]
    assert [len(fills) for fills in result.fills] == [3, 3]
    for fills in result.fills:
        shares = [fill.probability for fill in fills]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] > 0 and sum(shares) < 1


def test_a_text_without_a_mask_is_told_so(runtime):
    with pytest.raises(PageError, match=r"There is no \[MASK\]"):
        page.fill_masks(runtime, SENTENCE)
    # It is behind what is read.
    with pytest.raises(PageError, match=r"There is no \[MASK\].*characters were not read"):
        page.fill_masks(runtime, SENTENCE * 100 + "[MASK]")


# --- confidence ---------------------------------------------------------------------------------


def test_a_word_has_the_probability_that_the_model_gives_it_when_it_alone_is_masked(runtime, model):
    text = "我们去 图书馆看书。"
    words, dropped = page.judge_words(runtime, text)
    assert "".join(word.text for word in words) == text
    assert dropped == 0
    ids = runtime.tokenizer.encode(text).ids
    place = 1
    for word in words:
        count = len(runtime.tokenizer.encode(word.text, add_special_tokens=False).ids)
        if word.text.strip():
            masked = torch.tensor([ids])
            masked[0, place : place + count] = 4
            with torch.inference_mode():
                logits = model(input_ids=masked).logits[0, place : place + count]
            chances = logits.softmax(-1)[range(count), ids[place : place + count]]
            assert word.probability == pytest.approx(chances.log().mean().exp().item(), rel=1e-4)
        else:
            assert word.probability is None
        place += count
    assert place == len(ids) - 1


def test_masks_in_a_judged_text_have_no_probability(runtime):
    words, _ = page.judge_words(runtime, "今天[MASK]气很好")
    assert [word.text for word in words if word.probability is None] == ["[MASK]"]


def test_white_space_in_front_belongs_to_the_first_word_where_tokens_leave_it_out(runtime):
    vocabulary = {
        entry: index for index, entry in enumerate(["[UNK]", "a", "[CLS]", "[SEP]", "今"])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    other = Runtime(runtime.folder, runtime.forward)
    other.tokenizer = tokenizer
    words, _ = page.judge_words(other, " 今天下雨")
    assert "".join(word.text for word in words) == " 今天下雨"
    words, _ = page.judge_words(other, "\x01")
    assert [(word.text, word.probability) for word in words] == [("\x01", None)]
    pieces, _ = page.cut_into_pieces(other, "\x01")
    assert "0.00" in page_html.pieces(pieces)


def test_a_judged_text_is_cut_sooner(runtime, monkeypatch):
    assert page.MAX_JUDGED_TOKENS < page.MAX_TOKENS
    monkeypatch.setattr(page, "MAX_JUDGED_TOKENS", 20)
    words, dropped = page.judge_words(runtime, SENTENCE * 3)
    assert dropped > 0
    kept = "".join(word.text for word in words)
    assert len(runtime.tokenizer.encode(kept).ids) <= page.MAX_JUDGED_TOKENS


# --- pieces -------------------------------------------------------------------------------------


def test_pieces_of_a_model_with_a_short_context_say_what_was_not_read(runtime):
    short = Runtime(replace(runtime.folder, longest_text=20), runtime.forward)
    pieces, dropped = page.cut_into_pieces(short, SENTENCE * 3)
    kept = "".join(word for piece in pieces for word in piece.words)
    assert dropped == len(SENTENCE * 3) - len(kept) > 0


def test_pieces_are_the_text_three_times(runtime):
    text = "周末我们坐高铁去苏州，喝了一壶碧螺春👩‍👩‍👧。\nPyTorch 2.13 𠮷"
    pieces, dropped = page.cut_into_pieces(runtime, text)
    assert dropped == 0
    for piece in pieces:
        assert "".join(piece.words) == "".join(piece.characters)
    assert "".join(word for piece in pieces for word in piece.words) == text
    ids = [number for piece in pieces for _, number in piece.tokens]
    assert ids == runtime.tokenizer.encode(text, add_special_tokens=False).ids
    (family,) = [piece for piece in pieces if "👩‍👩‍👧" in piece.characters]
    assert len(family.tokens) > 1


def test_pieces_are_as_small_as_possible(runtime):
    pieces, _ = page.cut_into_pieces(runtime, SENTENCE)
    assert len(pieces) >= 5
    for piece in pieces:
        words, tokens = (
            set(itertools.accumulate(map(len, parts)))
            for parts in (piece.words, [token for token, _ in piece.tokens])
        )
        assert words & tokens == {len("".join(piece.words))}


# --- similarity ---------------------------------------------------------------------------------


def test_texts_are_lines_and_what_is_left_out_is_said(runtime):
    texts, remarks = page.read_texts("甲\n\n 乙 \n", runtime.tokenizer, 50)
    assert (texts, remarks) == (["甲", "乙"], [])
    texts, remarks = page.read_texts(f"{SENTENCE * 9}\n" * 13, runtime.tokenizer, 50)
    assert len(texts) == page.MAX_TEXTS
    assert "Only the first 12 of 13" in remarks[0]
    assert len(remarks) == 1 + page.MAX_TEXTS
    with pytest.raises(PageError, match="at least two"):
        page.read_texts("一行", runtime.tokenizer, 50)


def test_similarities_are_cosines():
    vectors = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]]
    assert page.similarities(vectors) == pytest.approx(np.array(expected))


# --- search -------------------------------------------------------------------------------------


def test_passages_are_lines_and_long_ones_end_with_a_sentence():
    long = "".join(f"这是第{number}句话，它说明了一件小事。" for number in range(40))
    passages = split_passages(f"短的一行\n\n  {long}\n{'长' * 450}")
    assert passages[0] == "短的一行"
    assert "".join(passages) == f"短的一行{long}{'长' * 450}"
    assert max(map(len, passages)) <= page_search.PASSAGE_LENGTH
    assert all(passage.endswith("。") for passage in passages[1:5])
    assert [len(passage) for passage in passages[-3:]] == [200, 200, 50]


def test_a_passage_finds_itself(embedder):
    texts = [f"{subject}在{place}" for subject in "猫狗鸟鱼" for place in ("家里", "河边", "山上")]
    index = page_search.build_index(embedder, texts)
    assert index.is_complete
    for number, text in enumerate(texts):
        found, _ = page_search.search(embedder, index, text)
        assert found[0] == (number, pytest.approx(1, abs=1e-5))
        cosines = [cosine for _, cosine in found]
        assert len(found) == 5 and cosines == sorted(cosines, reverse=True)
    with pytest.raises(PageError, match="enter some text"):
        page_search.search(embedder, index, " ")


def test_an_index_takes_so_many_passages_and_says_so(embedder, monkeypatch):
    monkeypatch.setattr(page_search, "MAX_PASSAGES", 150)
    done = []
    index = page_search.build_index(
        embedder, [str(number) for number in range(160)], lambda *args: done.append(args)
    )
    assert (len(index.passages), index.vectors.shape[0], index.is_complete) == (150, 150, False)
    assert done == [(0, 150), (64, 150), (128, 150)]


def test_what_is_not_read_of_a_question_is_counted(embedder):
    index = page_search.build_index(embedder, [SENTENCE])
    assert page_search.search(embedder, index, SENTENCE)[1] == 0
    question = SENTENCE * 100
    read = page.read_input(question, embedder.tokenizer, page.max_tokens_of(embedder))
    assert page_search.search(embedder, index, question)[1] == read.dropped > 0


def test_fewer_passages_than_places():
    index = SearchIndex(["一"], np.array([[1.0, 0.0]]), True)
    assert index.best(np.array([0.0, 2.0])) == [(0, 0.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ("\ufeff \r\n\r\n".encode(), "is empty"),
        ("今天".encode("gb18030"), "not UTF-8"),
        ("今天".encode("utf-16"), "not UTF-8"),
        (bytes(range(256)), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_searched_is_told_so(tmp_path, content, message):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(PageError, match=message):
        read_passages(tmp_path / "notes.txt")


def test_a_file_of_200_megabytes_is_not_even_read(tmp_path):
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(PageError, match=r"too large \(200.0 MB\); up to 2 MB"):
        read_passages(tmp_path / "large.txt")


def test_lines_end_as_they_do_anywhere(tmp_path):
    (tmp_path / "notes.txt").write_bytes("\ufeff一\r\n二\r三\n".encode())
    assert read_passages(tmp_path / "notes.txt") == ["一", "二", "三"]


# --- shown --------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"


def test_no_text_becomes_markup():
    fill = Fill(EVIL, 0.5)
    shown = [
        page_html.error(EVIL),
        page_html.foot(EVIL),
        page_html.filled(page.FilledText([EVIL, EVIL], [[fill]], 0)),
        page_html.judged([page.JudgedWord(EVIL, 0.5), page.JudgedWord(EVIL, None)]),
        page_html.surprises([page.JudgedWord(EVIL, 0.5)]),
        page_html.pieces([page.Piece([EVIL], [(EVIL, 1)], [EVIL])]),
        page_html.heat_map([EVIL, EVIL], np.eye(2)),
        page_html.hits([EVIL], [(0, 0.5)]),
        page_html.entities(EVIL, [{"entity_group": EVIL, "start": 0, "end": 9, "score": 0.9}]),
    ]
    for result in shown:
        assert "<script" not in result
        assert "&lt;script" in result


def test_a_heat_map_is_colored_between_its_lowest_and_highest_pair():
    cosines = np.array([[1, 0.9, 0.8], [0.9, 1, 0.85], [0.8, 0.85, 1]])
    shown = page_html.heat_map(["甲", "乙", "丙"], cosines)
    for value, share in (("0.80", 0), ("0.85", 0.5), ("0.90", 1)):
        assert f'{page_html.closeness(0.8 + share / 10, 0.8, 0.9)}">{value}</td>' in shown
    assert shown.count("–</td>") == 3


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100%"), (0.123, "12%"), (0.0123, "1.2%"), (1e-9, "< 0.1%")]
)
def test_small_shares_keep_a_digit(share, text):
    assert page_html.percent(share) == text
