"""Tokens, windows and frames: what a tokenizer makes of a text, and back to the characters."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetuning.spans import BORDERS, encode, frame, windows
from model_folders import ROOT

TEXT = "小明在南京市图书馆看了3.5小时《Python入门》，𠀋字也有。"


@pytest.fixture(scope="module")
def ours():
    return AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)


@pytest.fixture(scope="module")
def bert():
    """A tokenizer as BERT's: lower case, one token a Han character, token types."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "一", "在", "京", "南", "python"]
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("input_ids", "token_type_ids", "attention_mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_input_names=names
    )


@pytest.mark.parametrize("borders", BORDERS)
def test_every_span_that_tokens_can_stand_for_comes_back_exactly(ours, borders):
    tokens = encode(TEXT, ours, borders)
    spans = [(a, b) for b in range(len(TEXT) + 1) for a in range(b)]
    for start, end in spans:
        first, last = tokens.cover(start, end)
        left, right = tokens.text_span(first, last)
        assert left <= start and end <= right  # the smallest run holds the span
        assert tokens.representable(start, end) == ((left, right) == (start, end))
    assert tokens.representable(0, len(TEXT))
    assert sum(tokens.representable(*span) for span in spans) > len(TEXT)


def test_plain_is_what_the_tokenizer_does(ours):
    assert encode(TEXT, ours, "plain").ids.tolist() == ours(TEXT)["input_ids"][1:-1]


def test_with_characters_every_span_of_han_characters_can_be_given(ours):
    tokens = encode("南京市长江大桥", ours, "characters")
    assert tokens.spans.tolist() == [[n, n + 1] for n in range(7)]


@pytest.mark.parametrize("text", ["他说的确实在理", "這個圖書館在陽臺對面，開門時間還沒確定"])
def test_with_words_no_token_crosses_their_ends(ours, text):
    ends = {start + len(word) for word, start, _ in ours.segment(text)}
    spans = encode(text, ours, "words").spans.tolist()
    assert {end for _, end in spans} >= ends


def test_white_space_that_a_tokenizer_drops_is_in_no_token(bert):
    tokens = encode("在 南京", bert, "plain")
    assert tokens.spans.tolist() == [[0, 1], [2, 3], [3, 4]]
    assert tokens.cover(1, 2) is None
    assert tokens.representable(2, 4) and not tokens.representable(1, 4)


@pytest.mark.parametrize("borders", BORDERS)
def test_an_empty_text_has_no_tokens(ours, borders):
    assert encode("", ours, borders).spans.shape == (0, 2)


def test_what_cannot_be_encoded_is_refused(ours):
    with pytest.raises(ValueError, match="plain, words, characters"):
        encode("好", ours, "letters")
    with pytest.raises(ValueError, match="fast tokenizer"):
        encode("好", object(), "plain")


@pytest.mark.parametrize(
    ("tokens", "size", "stride"), [(1, 8, 4), (8, 8, 8), (9, 8, 3), (40, 8, 8)]
)
def test_windows_cover_a_text_and_are_full(tokens, size, stride):
    found = windows(tokens, size, stride)
    assert {place for start, stop in found for place in range(start, stop)} == set(range(tokens))
    assert all(stop - start == min(size, tokens) for start, stop in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("size", "stride"), [(8, 0), (8, 9), (0, 1)])
def test_windows_that_leave_gaps_are_refused(size, stride):
    with pytest.raises(ValueError, match="raise max_length"):
        windows(20, size, stride)


@pytest.mark.parametrize("texts", [["在南京"], ["在南京", "一"]])
@pytest.mark.parametrize("name", ["ours", "bert"])
def test_a_frame_is_the_tokenizers_own(request, name, texts):
    tokenizer = request.getfixturevalue(name)
    ids = [encode(text, tokenizer, "plain").ids for text in texts]
    framing = frame(tokenizer, len(texts))
    row = framing.build(*ids)
    assert row == dict(tokenizer(*texts))
    assert framing.size == len(row["input_ids"]) - sum(map(len, ids))
    for index, own in enumerate(ids):
        start = framing.start_of(index, *ids)
        assert row["input_ids"][start : start + len(own)] == own.tolist()
