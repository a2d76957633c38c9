"""The collator on ordinary features: words, lengths, padding and randomness."""

import functools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BatchEncoding, BertTokenizer, PreTrainedTokenizerFast
from transformers.trainer_utils import RemoveColumnsCollator

from data_collator_wwm import (
    IGNORED,
    DataCollatorForWholeWordMasking,
)

ROOT = Path(__file__).resolve().parent.parent

WORDS = [
    ["周末", "我们", "去", "图书馆", "借", "了", "三", "本", "小说", "。"],
    ["外面", "下雨", "了", "，", "记得", "带伞", "！"],
    ["这", "道", "菜", "太", "咸", "。"],
    [
        "电影",
        "院",
        "门口",
        "排",
        "了",
        "很",
        "长",
        "的",
        "队",
        "，",
        "票",
        "早就",
        "卖",
        "完",
        "。",
    ],
]


@pytest.fixture(scope="module")
def bert() -> BertTokenizer:
    """A Chinese BERT tokenizer of the legacy kind: single characters, unused entries first."""
    characters = sorted({character for words in WORDS for word in words for character in word})
    entries = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})


def encode(tokenizer, words: list[str], **keys) -> dict:
    """`input_ids` and `word_starts` of a sentence in words, one token a character."""
    starts = [0, *(int(i == 0) for word in words for i in range(len(word))), 0]
    return {"input_ids": tokenizer("".join(words))["input_ids"], "word_starts": starts, **keys}


def sentences(tokenizer, repeated: int = 1) -> list[dict]:
    return [encode(tokenizer, words) for words in WORDS * repeated]


def masked_words(words: list[str], labels: list[int]) -> list[float]:
    """What share of each word is masked."""
    shares, place = [], 1  # after [CLS]
    for word in words:
        of_word = labels[place : place + len(word)]
        shares.append(sum(label != IGNORED for label in of_word) / len(word))
        place += len(word)
    return shares


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_words_of_ordinary_features_are_masked_whole_and_exactly(bert, rate):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=rate)
    batch = collator(sentences(bert, repeated=8))
    for words, labels in zip(WORDS * 8, batch["labels"].tolist(), strict=True):
        assert set(masked_words(words, labels)) <= {0, 1}
        assert sum(label != IGNORED for label in labels) == round(rate * len("".join(words)))


@pytest.mark.parametrize(
    ("lengths", "rate", "expected"),
    [
        ([2, 2, 2, 1, 1, 1], 6 / 9, 6),  # 1, 1, 1 and 2 leave one that no other word fills
        ([3, 3, 2, 2], 0.6, 6),
        ([5, 4, 4], 8 / 13, 8),
        ([3, 3], 0.5, 3),
        ([3, 3], 0.4, 3),  # two tokens, but no word is as short
        ([1, 2], 0.15, 1),  # a short text has something to learn from
        ([1, 2], 0.0, 0),
        ([7, 5, 3], 0.6, 8),  # 8, not the 9 that no words have together
        ([40], 0.5, 16),  # parts of 16, 16 and 8 have no 20 together
    ],
)
def test_words_fill_the_budget_whenever_some_can(bert, lengths, rate, expected):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=rate)
    starts = [int(i == 0) for length in lengths for i in range(length)]
    feature = {"input_ids": [6 + i % 20 for i in range(len(starts))], "word_starts": starts}
    masked = (collator([feature] * 50)["labels"] != IGNORED).sum(1)
    assert masked.tolist() == [expected] * 50


def test_sequences_are_padded_to_the_longest(bert):
    batch = DataCollatorForWholeWordMasking.for_tokenizer(bert)(sentences(bert))
    lengths = [len("".join(words)) + 2 for words in WORDS]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.shape == (4, max(lengths)) for tensor in batch.values())
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["attention_mask"].sum(1).tolist() == lengths
    original = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    for feature, ids, length in zip(sentences(bert), original.tolist(), lengths, strict=True):
        assert ids == feature["input_ids"] + [bert.pad_token_id] * (max(lengths) - length)


def test_padding_on_the_left_masks_the_same(bert):
    given = [{**feature, "position": i} for i, feature in enumerate(sentences(bert))]
    make = functools.partial(DataCollatorForWholeWordMasking.for_tokenizer, bert, mask_rate=0.4)
    right, left = make()(given), make(padding_side="left")(given)
    for row, length in enumerate(right["attention_mask"].sum(1).tolist()):
        for name in right:
            assert torch.equal(right[name][row, :length], left[name][row, -length:])
        assert not left["attention_mask"][row, :-length].any()
        assert (left["input_ids"][row, :-length] == bert.pad_token_id).all()
        assert (left["labels"][row, :-length] == IGNORED).all()


def test_the_padding_side_is_the_tokenizers():
    entries = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[UNK]": 4, "雨": 5, "停": 6}
    bert = BertTokenizer(vocab=entries, padding_side="left")
    given = [
        {"input_ids": [1, 5, 6, 2], "word_ids": [None, 0, 1, None]},
        {"input_ids": [1, 5, 2], "word_ids": [None, 0, None]},
    ]
    batch = DataCollatorForWholeWordMasking.for_tokenizer(bert)(given)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_lengths_are_padded_to_a_multiple_when_asked(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, pad_to_multiple_of=16)
    assert collator(sentences(bert))["labels"].shape == (4, 32)
    assert collator(sentences(bert)[1:2])["labels"].shape == (1, 16)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_are_the_same(bert, kind):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.3)
    given = [{**feature, "position": i} for i, feature in enumerate(sentences(bert))]
    other = [
        {
            "input_ids": kind(each["input_ids"]),
            "word_starts": kind(each["word_starts"]) == kind([1]),
        }
        if kind is not list
        else {**each, "word_starts": [start == 1 for start in each["word_starts"]]}
        for each in given
    ]
    other = [{**each, "position": kind([i])[0]} for i, each in enumerate(other)]
    expected, batch = collator(given), collator(other)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_word_ids_are_words_as_word_starts_are(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.3)
    starts = [{**feature, "position": i} for i, feature in enumerate(sentences(bert))]
    for none in (None, float("nan"), -1):  # lists, `datasets` in numpy format, and by hand
        ids = [
            {
                "input_ids": feature["input_ids"],
                "word_ids": [none, *(n for n, word in enumerate(words) for _ in word), none],
                "position": feature["position"],
            }
            for feature, words in zip(starts, WORDS, strict=True)
        ]
        batch, expected = collator(ids), collator(starts)
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_words_on_both_sides_of_a_separator_are_two(bert):
    """In a pair, word_ids() counts each text from 0."""
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.5, replace=(1, 0, 0))
    encoding = bert("咸", "雨")
    feature = {"input_ids": encoding["input_ids"], "word_ids": encoding.word_ids()}
    assert encoding.word_ids() == [None, 0, None, 0, None]
    for _ in range(10):
        assert (collator([feature])["labels"] != IGNORED).sum() == 1


def test_without_words_single_tokens_are_masked_and_a_warning_says_so_once(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.5)
    given = [bert("".join(words)) for words in WORDS]
    assert isinstance(given[0], BatchEncoding)
    with pytest.warns(UserWarning, match="single tokens are masked.*remove_unused_columns=False"):
        batch = collator(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            batch = collator(given)
        loader = DataLoader(given, batch_size=2, collate_fn=collator, num_workers=2)
        assert len(list(loader)) == 2
    masked = (batch["labels"] != IGNORED).sum(1).tolist()
    assert masked == [round(0.5 * len("".join(words))) for words in WORDS]
    shares = [masked_words(*each) for each in zip(WORDS, batch["labels"].tolist(), strict=True)]
    assert any(0 < share < 1 for of_sentence in shares for share in of_sentence)


def test_columns_that_trainer_removed_are_named_in_the_message(bert):
    """What Trainer hands on of a dataset that is not of `datasets`, by default."""
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert)
    removed = RemoveColumnsCollator(collator, ["input_ids", "attention_mask", "labels"])
    with pytest.warns(UserWarning, match=r"remove_unused_columns=False"):
        removed(sentences(bert))
    with pytest.raises(ValueError, match=r"remove_unused_columns=False"):
        removed([{"row": np.zeros(8, np.uint16), "position": place} for place in range(2)])


def test_special_tokens_are_never_masked(bert):
    tokenizer = BertTokenizer(vocab=bert.get_vocab(), extra_special_tokens=["[客户]"])
    collator = DataCollatorForWholeWordMasking.for_tokenizer(tokenizer, mask_rate=1)
    ids = tokenizer("[客户]下雨了𠮷[MASK]")["input_ids"]
    labels = collator([{"input_ids": ids, "word_starts": [1] * len(ids)}])["labels"][0].tolist()
    masked = [token for token in labels if token != IGNORED]
    assert tokenizer.unk_token_id in ids
    assert tokenizer.convert_ids_to_tokens(masked) == ["下", "雨", "了"]


def test_a_word_around_an_unknown_token_stays_one(bert):
    """The word 咸𠮷本, whose second character the vocabulary lacks."""
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.5)
    ids = bert("这道咸𠮷本")["input_ids"]
    for _ in range(20):
        labels = collator([{"input_ids": ids, "word_starts": [0, 1, 1, 1, 0, 0, 0]}])["labels"][0]
        assert (labels != IGNORED).sum() == 2
        assert (labels[3] == IGNORED) == (labels[5] == IGNORED)
        assert labels[4] == IGNORED


def test_a_special_tokens_mask_decides_when_it_is_given(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=1)
    feature = encode(bert, ["下雨", "了"], special_tokens_mask=[1, 0, 0, 1, 0])
    assert (collator([feature])["labels"][0] != IGNORED).tolist() == [
        False,
        True,
        True,
        False,
        True,
    ]


def test_what_the_attention_mask_leaves_out_is_padding(bert):
    padded = bert(["".join(words) for words in WORDS], padding="max_length", max_length=40)
    given = [
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "word_starts": [1] * 40}
        for ids, mask, types in zip(
            *(padded[name] for name in ("input_ids", "attention_mask", "token_type_ids")),
            strict=True,
        )
    ]
    given[0]["attention_mask"] = [1] * 6 + [0] * 34  # the sentence goes on, but is left out
    batch = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=1)(given)
    assert "token_type_ids" not in batch
    assert batch["attention_mask"].tolist() == [each["attention_mask"] for each in given]
    assert (batch["labels"][0] != IGNORED).sum() == 5
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_random_tokens_are_no_special_tokens():
    tokenizer = AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)
    for each in (tokenizer, PreTrainedTokenizerFast.from_pretrained(ROOT)):
        collator = DataCollatorForWholeWordMasking.for_tokenizer(
            each, mask_rate=1, replace=(0, 1, 0)
        )
        ids = each("夜里起了风，窗户没关好，桌上的信纸吹了一地。")["input_ids"]
        inputs = collator([{"input_ids": ids, "word_starts": [1] * len(ids)}] * 500)["input_ids"]
        drawn = set(inputs[:, 1:-1].flatten().tolist())
        assert not drawn & set(each.all_special_ids)
        assert len(drawn) > 5000
        assert max(drawn) < len(each)


def test_ordinary_features_are_masked_80_10_10(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.3)
    given = sentences(bert, repeated=1500)
    batch = collator(given)
    masked = batch["labels"] != IGNORED
    inputs, labels = batch["input_ids"][masked], batch["labels"][masked]
    # A random token is the original one in 1 of 50 cases.
    assert (inputs == bert.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (inputs == labels).float().mean().item() == pytest.approx(0.1 + 0.1 / 50, abs=0.01)


def test_masks_are_drawn_anew_and_follow_torchs_seed(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.3)
    given = sentences(bert, repeated=8)
    torch.manual_seed(0)
    first, second = collator(given)["labels"], collator(given)["labels"]
    assert not torch.equal(first, second)
    assert not torch.equal(first[:4], first[4:8])  # the same sentences in one batch
    torch.manual_seed(0)
    assert torch.equal(collator(given)["labels"], first)


def test_workers_draw_masks_of_their_own(bert):
    given = sentences(bert)[:1] * 16
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=0.5)

    def epochs(count: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loader = DataLoader(given, batch_size=4, collate_fn=collator, num_workers=2)
        return [batch["labels"] for _ in range(count) for batch in loader]

    batches = epochs(2)
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 8
    assert all(map(torch.equal, epochs(1), batches))


def test_with_positions_masks_follow_from_seed_and_position_alone(bert):
    make = functools.partial(DataCollatorForWholeWordMasking.for_tokenizer, bert, mask_rate=0.3)
    given = [{**each, "position": i} for i, each in enumerate(sentences(bert, repeated=4))]
    together = make(seed=5)(given)["labels"]
    assert torch.equal(make(seed=5)(given)["labels"], together)
    alone = make(seed=5)(given[6:7])["labels"][0]
    assert torch.equal(together[6, : len(alone)], alone)
    assert not torch.equal(make(seed=6)(given)["labels"], together)
    loader = DataLoader(given, batch_size=4, collate_fn=make(seed=5), num_workers=2)
    longest = together.shape[1]
    workers = torch.cat([batch["labels"] for batch in loader])
    assert longest == workers.shape[1]
    assert torch.equal(workers, together)


def test_the_rate_may_follow_the_step(bert):
    collator = DataCollatorForWholeWordMasking.for_tokenizer(bert, mask_rate=lambda step: step / 10)
    given = [{**each, "step": step} for step, each in enumerate(sentences(bert))]
    masked = (collator(given)["labels"] != IGNORED).sum(1).tolist()
    assert masked == [round(i / 10 * len("".join(words))) for i, words in enumerate(WORDS)]
