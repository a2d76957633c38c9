"""Choices: examples to inputs of a model with one score a choice, and its scores to choices.

Two forms. A question about a passage (C3) is read as the pair passage, question + choice. A blank
in a text (ChID) is filled with each choice, and the choice follows as the second text. The blanks
of a group are answered together: each choice at most once, so that the sum of the scores is
largest.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from finetuning.choice_data import BLANK, OTHER_BLANK
from finetuning.spans import IGNORED, Frame, frame

IDIOM_TOKENS = 4  # masks for a blank that is not asked for, as in CLUE's baseline


@dataclass(frozen=True)
class ChoiceSettings:
    """How examples become inputs.

    Attributes:
        choices: how many choices a row has; examples with fewer get empty ones. Rows that are
            not trained on have as many as the longest needs (CLUE's hidden C3 has some over four).
        max_length: tokens of an input, special tokens included.
        blanks: whether texts have a blank that the choices fill.
    """

    choices: int
    max_length: int = 512
    blanks: bool = False


@dataclass(frozen=True)
class ChoiceDecoding:
    """What `decode` needs besides the scores.

    Attributes:
        choices: how many choices each example has.
        groups: the examples that are answered together, by their numbers; None if each is
            answered by itself.
        inexact: texts that were cut, by reason.
    """

    choices: list[int]
    groups: list[list[int]] | None
    inexact: Counter


def features(examples, tokenizer, settings, training: bool) -> tuple[list[dict], ChoiceDecoding]:
    """Examples as rows of `input_ids` and the other inputs, each (choices, tokens), and `labels`.

    Passages that are too long are cut at their end, texts around a blank on both sides; both are
    counted.

    Args:
        training: whether every example must have a label. Without one, `labels` is -100.

    Raises:
        ValueError: on a label that is missing, more choices to train on than the settings say, or a
            question or choice that leaves no room for the text; the message names the example.
    """
    framing = frame(tokenizer, 2)
    data, groups, inexact = [], defaultdict(list), Counter()
    width = max([settings.choices, *(len(example["choices"]) for example in examples)])
    for number, example in enumerate(examples):
        where = f"example {example['id']!r}"
        if training and example["label"] is None:
            raise ValueError(f"{where} has no label; train on a split with labels.")
        if training and len(example["choices"]) > settings.choices:
            raise ValueError(
                f"{where} has {len(example['choices'])} choices, the task {settings.choices}; "
                "raise `choices`."
            )
        build = _fill if settings.blanks else _ask
        rows, is_cut = build(example, tokenizer, framing, settings.max_length)
        rows += [framing.build([], [])] * (width - len(rows))
        row = {name: [one[name] for one in rows] for name in rows[0]}
        row["labels"] = IGNORED if example["label"] is None else example["label"]
        inexact["text is cut"] += is_cut
        data.append(row)
        groups[example["group"]].append(number)
    return data, ChoiceDecoding(
        [len(example["choices"]) for example in examples],
        list(groups.values()) if settings.blanks else None,
        +inexact,
    )


def _ids(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _ask(example: dict, tokenizer, framing: Frame, max_length: int) -> tuple[list[dict], bool]:
    passage, rows, is_cut = _ids(example["text"], tokenizer), [], False
    for choice in example["choices"]:
        asked = _ids(f"{example['text_pair'] or ''}{choice}", tokenizer)
        room = max_length - framing.size - len(asked)
        _check_room(room, example, max_length)
        rows.append(framing.build(passage[:room], asked))
        is_cut |= len(passage) > room
    return rows, is_cut


def _fill(example: dict, tokenizer, framing: Frame, max_length: int) -> tuple[list[dict], bool]:
    left, right = around_blank(example, tokenizer)
    rows, is_cut = [], False
    for choice in example["choices"]:
        filled = _ids(choice, tokenizer)
        room = max_length - framing.size - 2 * len(filled)
        _check_room(room, example, max_length)
        before, after = cut_around(len(left), len(right), room)
        text = [*left[len(left) - before :], *filled, *right[:after]]
        rows.append(framing.build(text, filled))
        is_cut |= before + after < len(left) + len(right)
    return rows, is_cut


def _check_room(room: int, example: dict, max_length: int) -> None:
    if room < 1:
        raise ValueError(
            f"example {example['id']!r}: the question or a choice leaves no room for the text in "
            f"{max_length} tokens; raise max_length."
        )


def around_blank(example: dict, tokenizer) -> tuple[list[int], list[int]]:
    """The tokens to the left and to the right of an example's blank.

    Other blanks of the text become masks; a model without masks reads nothing there.

    Raises:
        ValueError: if the text holds no blank or several.
    """
    parts = example["text"].split(BLANK)
    if len(parts) != 2:
        raise ValueError(
            f"example {example['id']!r}: 'text' must hold one {BLANK!r}, it holds "
            f"{len(parts) - 1}; write an example for each blank."
        )
    hidden = [] if tokenizer.mask_token_id is None else [tokenizer.mask_token_id] * IDIOM_TOKENS
    sides = []
    for part in parts:
        first, *others = (_ids(text, tokenizer) for text in part.split(OTHER_BLANK))
        sides.append([*first, *(token for ids in others for token in (*hidden, *ids))])
    return sides[0], sides[1]


def cut_around(left: int, right: int, room: int) -> tuple[int, int]:
    """How many tokens to keep on the two sides of a blank: half of the room each, and what one side
    does not need goes to the other."""
    before = min(left, max(room // 2, room - right))
    return before, min(right, room - before)


def decode(scores, decoding: ChoiceDecoding) -> list[int]:
    """The index of the choice for each example.

    Args:
        scores: (examples, choices) logits.
    """
    scores = np.asarray(scores, dtype=np.float64)
    picked = [
        int(row[:count].argmax()) for row, count in zip(scores, decoding.choices, strict=True)
    ]
    for group in decoding.groups or ():
        count = decoding.choices[group[0]]
        if 1 < len(group) <= count:
            for number, choice in zip(group, assign(scores[group, :count]), strict=True):
                picked[number] = choice
    return picked


def assign(scores: np.ndarray) -> list[int]:
    """A choice for each row, none of them twice, whose scores have the largest sum.

    Args:
        scores: (rows, choices) logits, at most as many rows as choices. Logits of a row are
            log-probabilities up to a constant, which changes no assignment.
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(scores, maximize=True)[1].tolist()
