"""Whole-word masking for masked language modeling: a data collator for transformers' Trainer.

This file needs numpy and torch, and nothing else of its repository: copy it beside your script.

    from transformers import AutoTokenizer, Trainer, TrainingArguments
    from data_collator_wwm import DataCollatorForWholeWordMasking

    tokenizer = AutoTokenizer.from_pretrained("bert-base-chinese")
    collator = DataCollatorForWholeWordMasking.for_tokenizer(tokenizer, mask_rate=0.3)
    arguments = TrainingArguments("output", remove_unused_columns=False)  # keeps `word_starts`
    Trainer(model, arguments, data_collator=collator, train_dataset=dataset).train()

An example of the dataset says which tokens start a word:

    {"input_ids": [101, 2769, 812, 1139, 1355, 102], "word_starts": [0, 1, 0, 1, 0, 0]}

`word_ids`, as returned by `BatchEncoding.word_ids()`, can be given instead if they are words of the
language. In Chinese they are not: a BERT tokenizer counts every character as a word, and others
count a whole sentence as one. Use the words of a segmenter there.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

# A packed row has one uint16 a token: 15 bits of id, and one that says "a word starts here".
WORD_START = np.uint16(1 << 15)
TOKEN_ID = np.uint16(WORD_START - 1)

IGNORED = -100  # the label of a token that is not predicted

# A longer word (a long Latin name, a line of symbols) is masked in parts: a unit of that size could
# take up the whole budget of a sequence.
MAX_UNIT_TOKENS = 16

# Sequences are masked together up to this many tokens, so that the arrays stay in the CPU's cache.
CACHED_TOKENS = 16_384

# How many of the remaining units are searched first to fill the last tokens of a budget.
NEAR = 64

# The keys of a feature that are read; others are ignored.
KEYS = {
    "row",
    "input_ids",
    "word_starts",
    "word_ids",
    "attention_mask",
    "special_tokens_mask",
    "position",
    "step",
}
REMOVED = (
    "If the dataset has more columns, Trainer removed them: set remove_unused_columns=False in "
    "TrainingArguments."
)


def split_row(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint16 of any shape -> (token ids as int64, word starts as bool), of that shape."""
    return (row & TOKEN_ID).astype(np.int64), (row & WORD_START) != 0


def document_positions(ids: np.ndarray, cls_id: int) -> np.ndarray:
    """Each token's position in its document, int64 of the shape of the ids, which are rows."""
    begins = ids == cls_id
    begins[..., 0] = True
    first = np.flatnonzero(begins)
    places = np.arange(ids.size) - np.repeat(first, np.diff(first, append=ids.size))
    return places.reshape(ids.shape)


@dataclass(eq=False)
class DataCollatorForWholeWordMasking:
    """Masks whole words. Create it by `for_tokenizer`, or by `for_rows` for packed rows.

    In each sequence, round(rate × maskable tokens) tokens are masked, or as many fewer as the
    lengths of its words require; of ordinary features at least one word. Mask units are words,
    except that a word of more than 16 tokens is masked in parts. They are drawn in random order
    until the budget is full; a unit that no longer fits is passed over. The tokens of a masked unit
    are all replaced by [MASK], all replaced by random tokens, or all kept.

    Features are dictionaries, and those of a batch have the same of the following keys. Ordinary
    features have

    - `input_ids`: integers, as a list, an array or a tensor. Sequences of unequal length are
      padded.
    - `word_starts`: for each token, whether it starts a word; or `word_ids`: for each token, the
      index of its word, or None if it belongs to none and is never masked. Without either, single
      tokens are masked, and a warning says so once.
    - `attention_mask`, optional: tokens with 0 are padding. Without it, `pad_id` is.
    - `special_tokens_mask`, optional: tokens with 1 are never masked. Without it, `special_ids`
      are not.

    Packed rows have

    - `row`: (seq_len,) uint16, see `split_row`. All rows of a batch have the same length, and each
      document begins with [CLS].

    Both have

    - `position`, optional for ordinary features: the position of the sequence in training, counted
      over all epochs (an index in the dataset would give every epoch the same masks). The mask
      depends on it and the seed alone, so it is the same with any number of workers and after a
      restart. Without it, masks are drawn anew at every call in every worker, from torch's random
      state, which Trainer sets from its `seed`.
    - `step`: the optimizer step; required if `mask_rate` is a function.

    Other keys are ignored, so batches have no `token_type_ids`: models without segments do not
    accept them, and models with segments default to zeros, which is right for single texts.

    Trainer removes columns that the model does not accept, and with them most of these: set
    `remove_unused_columns=False`.

    Args:
        cls_id: id of [CLS], with which the documents of a packed row begin; None if the collator is
            only used for ordinary features.
        pad_id, mask_id: ids of [PAD] and [MASK].
        special_ids: ids that are never masked, [CLS], [SEP] and [PAD] among them.
        random_ids: (n,) ids that random tokens are drawn from.
        seed: seed of the masks of features with a position; otherwise unused.
        mask_rate: share of the maskable tokens to mask, or a function from step to share.
        replace: shares of the masked units replaced by [MASK], replaced by random tokens, and kept.
        padding_side: "right" or "left", where shorter sequences are padded.
        pad_to_multiple_of: pads sequences to a multiple of this length.
        whole_words: False masks the single tokens of packed rows.

    Raises:
        ValueError: if a rate or share does not lie between 0 and 1, or for another padding side.
    """

    cls_id: int | None
    pad_id: int
    mask_id: int
    special_ids: Sequence[int]
    random_ids: np.ndarray = field(repr=False)
    seed: int = 0
    mask_rate: float | Callable[[int], float] = 0.15
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None
    whole_words: bool = True

    def __post_init__(self):
        if not callable(self.mask_rate):
            _check_rate(self.mask_rate)
        if len(self.replace) != 3 or min(self.replace) < 0 or abs(sum(self.replace) - 1) > 1e-6:
            raise ValueError(f"replace={self.replace}: it must be three shares that sum to 1.")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={self.padding_side!r}: choose 'left' or 'right'.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: it must be at least 0.")
        # Shared with all data-loader workers, which may be started anew for each epoch.
        self._has_warned = torch.zeros((), dtype=torch.bool, device="cpu").share_memory_()

    @classmethod
    def for_tokenizer(cls, tokenizer, **settings) -> "DataCollatorForWholeWordMasking":
        """A collator for a tokenizer of transformers, whose special tokens are never masked.

        Args:
            settings: `seed`, `mask_rate`, `replace`, `padding_side` (by default the tokenizer's),
                `pad_to_multiple_of`.

        Raises:
            ValueError: if the tokenizer has no mask token or no padding token.
        """
        for name in ("mask_token", "pad_token"):
            if getattr(tokenizer, f"{name}_id") is None:
                raise ValueError(
                    f"the tokenizer has no {name}, which masking requires; set tokenizer.{name}."
                )
        added = tokenizer.added_tokens_decoder
        special = {
            *tokenizer.all_special_ids,
            *(id for id, token in added.items() if token.special),
        }
        return cls(
            cls_id=tokenizer.cls_token_id,
            pad_id=tokenizer.pad_token_id,
            mask_id=tokenizer.mask_token_id,
            special_ids=sorted(special),
            random_ids=np.array(sorted({*tokenizer.get_vocab().values()} - special)),
            **{"padding_side": tokenizer.padding_side, **settings},
        )

    @classmethod
    def for_rows(cls, rows, **settings) -> "DataCollatorForWholeWordMasking":
        """A collator for a set of packed rows, whose `manifest` has the ids.

        Args:
            settings: `seed`, `mask_rate`, `replace`, `whole_words`.
        """
        ids = rows.manifest["special_token_ids"]
        ordinary = rows.manifest["first_ordinary_id"], rows.manifest["vocab_size"]
        return cls(
            cls_id=ids["cls_id"],
            pad_id=ids["pad_id"],
            mask_id=ids["mask_id"],
            special_ids=[ids["cls_id"], ids["sep_id"], ids["pad_id"]],
            random_ids=np.arange(*ordinary),
            **settings,
        )

    def __call__(self, features: list[Mapping]) -> dict[str, torch.Tensor]:
        """Masks and pads a batch.

        Returns:
            int64 tensors (batch, longest sequence): `input_ids`; `attention_mask`, 0 at padding;
            `labels`, the original id where masked and -100 elsewhere; and, for packed rows,
            `position_ids`, which restart with each document.

        Raises:
            ValueError: if the features do not have the keys described above or do not all have the
                same ones, or if `mask_rate` returns a rate that does not lie between 0 and 1.
        """
        keys = self._keys_of(features)
        if "row" in keys:
            ids, starts = split_row(_stacked_rows(features))
            maskable, starts = self._maskable(ids, starts)
            real = ids != self.pad_id
        else:
            ids, starts, maskable, real = self._padded(features)
        inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
        draws = self._draws(features)
        # In a packed row the greedy choice almost always fills the budget, and it must not change,
        # so that a resumed run sees the same masks.
        exact = "row" not in keys
        at_once = max(1, CACHED_TOKENS // ids.shape[1])
        for first in range(0, len(ids), at_once):
            some = slice(first, first + at_once)
            self._mask(inputs[some], labels[some], starts[some], maskable[some], draws, exact)
        batch = {"input_ids": inputs, "attention_mask": real.astype(np.int64), "labels": labels}
        if "row" in keys:
            batch["position_ids"] = document_positions(ids, self.cls_id) * real
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def units(
        self, ids: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mask units of packed rows.

        Args:
            ids, starts: (rows, seq_len) from `split_row`.

        Returns:
            As `_units`.
        """
        return _units(*self._maskable(ids, starts))

    def _keys_of(self, features: list[Mapping]) -> set[str]:
        """The keys of the features that are read.

        Raises:
            ValueError: if features differ in them, or if they do not describe a sequence.
        """
        for feature in features:
            if not isinstance(feature, Mapping):
                raise ValueError(
                    f"a feature is a {type(feature).__name__}; it must be a dictionary with the "
                    "key 'input_ids' or 'row'."
                )
        first = features[0]
        keys = KEYS & first.keys()
        for feature in features:
            if feature.keys() != first.keys() and KEYS & feature.keys() != keys:
                raise ValueError(
                    f"the features of a batch must have the same keys, but one has {sorted(keys)} "
                    f"and another {sorted(KEYS & feature.keys())}."
                )

        def refuse(what: str):
            raise ValueError(f"a feature with the keys {sorted(first.keys())} {what}")

        if "row" not in keys and "input_ids" not in keys:
            refuse(f"has neither 'input_ids' nor 'row'. {REMOVED}")
        if "row" in keys and "input_ids" in keys:
            refuse("has both 'row' and 'input_ids'; give only one of them.")
        if "word_starts" in keys and "word_ids" in keys:
            refuse("has both 'word_starts' and 'word_ids'; give only one of them.")
        if "row" in keys and "position" not in keys:
            refuse(f"has a 'row' but no 'position' in training. {REMOVED}")
        if "row" in keys and self.cls_id is None:
            refuse(
                "has a 'row', but this collator does not know the [CLS] that documents begin at."
            )
        if callable(self.mask_rate) and "step" not in keys:
            refuse(
                "has no 'step', but mask_rate is a function of the step. Add the optimizer step to "
                f"each example as 'step', or set mask_rate to a number. {REMOVED}"
            )
        if "input_ids" in keys and not keys & {"word_starts", "word_ids"} and not self._has_warned:
            self._has_warned.fill_(True)
            warnings.warn(
                "The features have neither 'word_starts' nor 'word_ids', so single tokens are "
                f"masked instead of whole words. {REMOVED}",
                stacklevel=3,
            )
        return keys

    def _maskable(self, ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens of packed rows (rows, seq_len) are maskable, and which start a unit."""
        # Faster than np.isin for a few ids.
        special = functools.reduce(np.logical_or, (ids == each for each in self.special_ids))
        starts = starts.copy() if self.whole_words else np.ones_like(starts)
        starts[:, 0] = True  # no unit reaches from one row into the next
        starts[:, 1:] |= special[:, :-1]
        return ~special, starts

    def _padded(self, features: list[Mapping]) -> tuple[np.ndarray, ...]:
        """(batch, longest): ids, and whether each starts a unit, is maskable, is not padding."""
        sequences = [self._read(feature) for feature in features]
        longest = max(len(sequence[0]) for sequence in sequences)
        multiple = self.pad_to_multiple_of or 1
        shape = (len(features), -(-longest // multiple) * multiple)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        starts, maskable, real = (np.zeros(shape, dtype=bool) for _ in range(3))
        for row, sequence in enumerate(sequences):
            length = len(sequence[0])
            tokens = slice(0, length) if self.padding_side == "right" else slice(-length, None)
            for padded, values in zip((ids, starts, maskable, real), sequence, strict=True):
                padded[row, tokens] = values
        return ids, starts, maskable, real

    def _read(self, feature: Mapping) -> tuple[np.ndarray, ...]:
        """(tokens,): ids, and whether each starts a unit, is maskable, is not padding."""
        ids = _integers(feature, "input_ids")
        if not len(ids):
            raise ValueError("input_ids: a sequence is empty; remove it from the dataset.")
        tokens = len(ids)
        if "attention_mask" in feature:
            real = _flags(feature, "attention_mask", tokens)
        else:
            real = ids != self.pad_id
        if "special_tokens_mask" in feature:
            maskable = real & ~_flags(feature, "special_tokens_mask", tokens)
        else:
            maskable = real & ~np.isin(ids, self.special_ids)
        if "word_starts" in feature:
            words = _flags(feature, "word_starts", tokens).cumsum()
        elif "word_ids" in feature:
            numbers = _word_ids(feature, tokens)
            maskable &= numbers >= 0
            words = (np.diff(numbers, prepend=-1) != 0).cumsum()
        else:
            words = np.arange(tokens)
        # A unit is all maskable tokens of a word, even if one between them, [UNK], is not maskable.
        starts, places = np.zeros(tokens, dtype=bool), np.flatnonzero(maskable)
        starts[places] = np.diff(words[places], prepend=-1) != 0
        return ids, starts, maskable, real

    def _draws(self, features: list[Mapping]) -> Iterator[tuple[float, np.random.Generator]]:
        """Yields each feature's mask rate, and a generator to use before the next is taken."""
        if "position" in features[0]:
            key, counters = self.seed, (int(feature["position"]) for feature in features)
        else:
            key, counters = int(torch.randint(1 << 62, (), device="cpu")), range(len(features))
        bits = np.random.Philox(key=key)
        generator, state = np.random.Generator(bits), bits.state
        rate = self.mask_rate
        for feature, counter in zip(features, counters, strict=True):
            # Philox is counter-based: setting the counter is enough, and faster than a generator
            # for each position.
            state["state"]["counter"][2] = counter
            bits.state = state
            if callable(self.mask_rate):
                rate = self.mask_rate(int(feature["step"]))
                _check_rate(rate)
            yield rate, generator

    def _mask(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        starts: np.ndarray,
        maskable: np.ndarray,
        draws: Iterator[tuple[float, np.random.Generator]],
        exact: bool,
    ) -> None:
        """Masks sequences in place; all arrays are (rows, tokens).

        Args:
            exact: fill each budget as far as any choice of units can.
        """
        rows, tokens = inputs.shape
        inputs, labels = inputs.reshape(-1), labels.reshape(-1)  # views
        places, first, lengths = _units(maskable, starts)
        borders = places.searchsorted(np.arange(rows + 1) * tokens).tolist()
        first_units = first.searchsorted(borders).tolist()
        chosen, draws_of_units, draws_of_tokens = [], [], []
        for row, (rate, generator) in zip(range(rows), draws, strict=False):
            budget = round(rate * (borders[row + 1] - borders[row]))
            of_row = lengths[first_units[row] : first_units[row + 1]]
            if exact and rate and len(of_row):
                budget = max(budget, int(of_row.min()))  # a short text has something to learn from
            units, filled = _choose(of_row, budget, generator)
            if exact and filled < budget:
                units, filled = _choose_exactly(of_row, budget, generator)
            draw = generator.random(len(units) + filled)
            chosen.append(units + first_units[row])
            draws_of_units.append(draw[: len(units)])
            draws_of_tokens.append(draw[len(units) :])
        units, draw = np.concatenate(chosen), np.concatenate(draws_of_units)
        lengths = lengths[units]
        before = lengths.cumsum() - lengths  # tokens of the units chosen before each
        masked = places[np.arange(lengths.sum()) + np.repeat(first[units] - before, lengths)]
        as_mask, as_random = self.replace[0], self.replace[0] + self.replace[1]
        shown_as_mask = np.repeat(draw < as_mask, lengths)
        shown_as_random = np.repeat((draw >= as_mask) & (draw < as_random), lengths)

        labels[masked] = inputs[masked]
        inputs[masked[shown_as_mask]] = self.mask_id
        share = np.concatenate(draws_of_tokens)[shown_as_random]
        drawn = (share * len(self.random_ids)).astype(int)
        inputs[masked[shown_as_random]] = self.random_ids[drawn]


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"mask_rate {rate}: it must lie between 0 and 1.")


def _stacked_rows(features: list[Mapping]) -> np.ndarray:
    """(batch, seq_len) packed rows.

    Raises:
        ValueError: if their lengths differ, or if they are not packed rows.
    """
    rows = [np.asarray(feature["row"]) for feature in features]
    if len(lengths := {row.size for row in rows}) > 1:
        raise ValueError(
            f"row: the rows of a batch must have the same length, not {sorted(lengths)}."
        )
    rows = np.stack(rows)
    # Lists become int64, which is fine as long as the values fit.
    fits = rows.dtype == np.uint16 or (rows.dtype.kind in "iu" and rows.max(initial=0) < 1 << 16)
    if rows.ndim != 2 or not fits:
        raise ValueError(f"row: expected (seq_len,) uint16, got {rows.shape[1:]} {rows.dtype}.")
    return rows


def _integers(feature: Mapping, key: str) -> np.ndarray:
    """The (tokens,) integers or booleans of a feature, given as a list, an array or a tensor.

    Raises:
        ValueError: if they are anything else.
    """
    try:
        values = np.asarray(feature[key])
    except (TypeError, ValueError):  # lists of unequal length, or a tensor on a GPU
        values = np.asarray(None)
    if values.ndim != 1 or (values.dtype.kind not in "iub" and values.size):
        raise ValueError(
            f"{key}: expected a list of one integer per token, got {type(feature[key]).__name__} "
            f"of shape {values.shape}, {values.dtype}."
        )
    return values


def _of_length(key: str, values: np.ndarray, tokens: int) -> np.ndarray:
    if len(values) != tokens:
        raise ValueError(f"{key} has {len(values)} entries, but input_ids has {tokens}.")
    return values


def _flags(feature: Mapping, key: str, tokens: int) -> np.ndarray:
    """The (tokens,) flags of a feature, as bool.

    Raises:
        ValueError: if they are not one 0 or 1 per token.
    """
    values = _of_length(key, _integers(feature, key), tokens)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{key}: expected 0 or 1 for each token, got {values.tolist()}.")
    return values.astype(bool)


def _word_ids(feature: Mapping, tokens: int) -> np.ndarray:
    """(tokens,) index of each token's word, -1 for none.

    Raises:
        ValueError: if they are not one integer or None per token.
    """
    values = feature["word_ids"]
    try:
        values = values.tolist() if hasattr(values, "tolist") else values
        # NaN, which does not equal itself, is how `datasets` in numpy format represents None.
        words = [-1 if word is None or word != word else int(word) for word in values]
    except (TypeError, ValueError):
        raise ValueError(
            "word_ids: expected an integer or None for each token, as BatchEncoding.word_ids() "
            f"returns them, got {values!r}."
        ) from None
    return np.maximum(_of_length("word_ids", np.array(words, dtype=np.int64), tokens), -1)


def _units(maskable: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits sequences into mask units.

    Args:
        maskable, starts: (rows, tokens) bool; the first maskable token of a row starts a unit.

    Returns:
        The flat indices of the maskable tokens; the indices, among these, of those that start a
        unit; and the number of tokens of each unit. All int64.
    """
    places = np.flatnonzero(maskable)
    if not len(places):
        return places, places, places
    begins = starts.ravel()[places]
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=len(places))
    if lengths.max() > MAX_UNIT_TOKENS:
        within = np.arange(len(places)) - np.repeat(first, lengths)
        begins |= within % MAX_UNIT_TOKENS == 0
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=len(places))
    return places, first, lengths


def _choose(
    lengths: np.ndarray, budget: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Chooses units in random order until the budget is full.

    Args:
        lengths: (units,) tokens of each.
        budget: how many tokens to choose.

    Returns:
        The indices of the chosen units, and their total number of tokens.
    """
    order = generator.permutation(len(lengths))
    filled = lengths[order[: budget + 1]].cumsum()  # a unit has at least one token
    cut = int(filled.searchsorted(budget, side="right"))
    chosen, rest = order[:cut], order[cut:]
    if not (left := budget - (int(filled[cut - 1]) if cut else 0)):
        return chosen, budget
    # What is left is shorter than the next unit. One-token units are common, so the next few almost
    # always include enough of them; otherwise, take the longest unit that still fits.
    near = rest[:NEAR]
    if len(single := near[lengths[near] == 1]) >= left:
        return np.concatenate([chosen, single[:left]]), budget
    more = []
    while left and len(fitting := rest[lengths[rest] <= left]):
        best = fitting[np.argmax(lengths[fitting])]
        more.append(best)
        left -= int(lengths[best])
        rest = rest[rest != best]
    return np.concatenate([chosen, np.array(more, dtype=order.dtype)]), budget - left


def _choose_exactly(
    lengths: np.ndarray, budget: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Like `_choose`, but fills the budget as far as any units can (subset sums)."""
    order = generator.permutation(len(lengths))
    # Bit n of reached[k]: some of the first k units have n tokens in total.
    reached = [1]
    for length in lengths[order].tolist():
        reached.append((reached[-1] | reached[-1] << length) & ((2 << budget) - 1))
    filled = left = reached[-1].bit_length() - 1
    chosen = []
    for number in reversed(range(len(order))):
        if not reached[number] >> left & 1:
            chosen.append(order[number])
            left -= int(lengths[order[number]])
    return np.array(chosen, dtype=order.dtype), filled
