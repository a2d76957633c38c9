"""Rows as text that a person can read: words, tokens, documents and masks."""

import itertools
import os
import sys
import unicodedata

import numpy as np
from tokenizers import Tokenizer

from data_collator_wwm import IGNORED, DataCollatorForWholeWordMasking, split_row
from pretraining.data.rows import Rows
from pretraining.data.tokens import BYTE_TOKENS, token_lengths

MARKING = """\
Words are separated by spaces, and the tokens of a word by ┊; a space in the text is shown as ␣. A
character encoded as byte tokens is shown at the first of them, so 𠀀┊┊┊ is four tokens. Invisible
characters, and any that look like one of these marks, are shown as Python escapes: \\n, \\u3000.
"""

# Unicode categories of control, format and separator characters and of unpaired surrogates.
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
MARKS = "┊␣‹›\\"

# How a masked token is shown: its ANSI color, its format, and what that means.
MASKED_AS = {
    "mask": (31, "{0}", "as [MASK]"),
    "random": (33, "{0}→{1}", "as a random token"),
    "kept": (32, "{0}=", "unchanged"),
}


def shows_color() -> bool:
    """Whether standard output is a terminal whose user has not declined color."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def collator_of(rows: Rows, mask_rate: float, seed: int = 0) -> DataCollatorForWholeWordMasking:
    """The collator that masks these rows in pretraining, at a fixed rate."""
    return DataCollatorForWholeWordMasking.for_rows(rows, seed=seed, mask_rate=mask_rate)


def byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte of each byte token, by id."""
    return {tokenizer.token_to_id(token): byte for byte, token in enumerate(BYTE_TOKENS)}


def visible(text: str) -> str:
    """Escapes characters that are invisible, control the terminal, or look like a mark."""
    shown = (
        character.encode("unicode_escape").decode()
        if character in MARKS or unicodedata.category(character) in INVISIBLE
        else character
        for character in text
    )
    return "".join(shown).replace(" ", "␣")


def token_texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The visible text of each token.

    The byte tokens of a character are shown as that character followed by empty texts. Bytes of an
    incomplete character, where a row ends within it, are shown by their names.
    """
    byte_of = byte_values(tokenizer)
    texts = []
    for are_bytes, run in itertools.groupby(ids, key=byte_of.__contains__):
        if not are_bytes:
            texts += [visible(tokenizer.id_to_token(index) or f"<{index}>") for index in run]
            continue
        for character in bytes(map(byte_of.get, run)).decode("utf-8", "surrogateescape"):
            if "\udc80" <= character <= "\udcff":  # a byte of its own: U+DC00 + byte
                texts.append(BYTE_TOKENS[ord(character) - 0xDC00])
            else:
                texts += [visible(character)] + [""] * (len(character.encode()) - 1)
    return texts


def mark(text: str, outcome: str, replacement: str, color: bool) -> str:
    """Marks a masked token, whose outcome is a key of MASKED_AS, by color or by ‹ and ›."""
    code, form, _ = MASKED_AS[outcome]
    text = form.format(text, replacement)
    return f"\x1b[{code}m{text}\x1b[0m" if color else f"‹{text}›"


def show_row(
    rows: Rows, index: int, tokenizer: Tokenizer, mask_rate: float | None, seed: int, color: bool
) -> str:
    """A row as lines of text, document by document.

    Args:
        mask_rate: shows the mask drawn by the collator at this rate and seed, with the index of the
            row as its position in training; None for no mask.
        color: show masked tokens in ANSI colors.

    Raises:
        ValueError: if there is no such row, or if the mask rate does not lie between 0 and 1.
    """
    if not 0 <= index < len(rows):
        raise ValueError(
            f"{rows.folder}: there is no row {index}; choose one from 0 to {len(rows) - 1}."
        )
    if mask_rate is not None and not 0 <= mask_rate <= 1:
        raise ValueError(f"mask rate {mask_rate}: it must lie between 0 and 1.")
    collator = collator_of(rows, mask_rate or 0.0, seed)
    feature = {"row": rows[index], "position": index}
    return show_as_masked(rows, index, feature, tokenizer, collator, mask_rate is not None, color)


def show_as_masked(
    rows: Rows,
    index: int,
    feature: dict,
    tokenizer: Tokenizer,
    collator: DataCollatorForWholeWordMasking,
    show_mask: bool,
    color: bool,
) -> str:
    """A row as lines of text, masked by a collator.

    Args:
        index: the index of the row in the row set.
        feature: the row as the collator takes it, with its position and step in training.
        show_mask: print how many tokens are masked, with a legend.
        color: show masked tokens in ANSI colors.
    """
    ids, starts = split_row(feature["row"])
    batch = collator([feature])
    inputs, labels = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
    cases = [labels == IGNORED, inputs == collator.mask_id, inputs == labels]
    outcomes = np.select(cases, ["", "mask", "kept"], "random")
    is_text = ~np.isin(ids, collator.special_ids)
    borders = np.flatnonzero(ids == collator.cls_id)
    documents = np.split(np.arange(len(ids)), borders[borders > 0])
    lengths = token_lengths(tokenizer)

    lines = [f"{rows.folder}, row {index} of 0 to {len(rows) - 1}; documents: {len(documents)}"]
    if show_mask:
        legend = ", ".join(
            f"{(outcomes == outcome).sum()} {mark('word', outcome, 'other', color)} {meaning}"
            for outcome, (_, _, meaning) in MASKED_AS.items()
        )
        lines.append(f"masked: {(outcomes != '').sum()} of {is_text.sum()} tokens, {legend}")
    for number, document in enumerate(documents, start=1):
        places = document[is_text[document]]
        characters = lengths[ids[places][ids[places] < len(lengths)]].sum()
        lines.append(f"── document {number}: {len(places)} tokens, {characters} characters ──")
        line, gap = "", ""
        for place, text in zip(places, token_texts(ids[places].tolist(), tokenizer), strict=True):
            line += gap if starts[place] or not gap else "┊"
            gap = "\n" if text.endswith("\\n") else " "
            if outcomes[place]:
                (replacement,) = token_texts([int(inputs[place])], tokenizer)
                text = mark(text, outcomes[place], replacement, color)
            line += text
        lines.append(line)
    lines.append(f"── padding: {(ids == collator.pad_id).sum()} tokens ──")
    return "\n".join(lines)
