"""Shows prepared rows: one of them as text, or the statistics of them all.

    python -m pretraining.inspect_rows rows/train-1024 --tokenizer . --row 17 --mask_rate 0.3
    python -m pretraining.inspect_rows rows/train-1024 --tokenizer . --statistics --picture rows.png

Words are separated by spaces, and the tokens of a word by ┊; a space in the text is shown as ␣. A
character encoded as byte tokens is shown at the first of them, so 𠀀┊┊┊ is four tokens. Invisible
characters, and any that look like one of these marks, are shown as Python escapes: \\n, \\u3000.
"""

import argparse
import itertools
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm

from data_collator_wwm import (
    IGNORED,
    MAX_UNIT_TOKENS,
    DataCollatorForWholeWordMasking,
    split_row,
)
from pretraining.data.encoding import open_with_tokenizer, token_lengths
from pretraining.data.rows import Rows
from pretraining.run.pictures import save_picture

BATCH_ROWS = 256
PERCENTS = (0, 10, 25, 50, 75, 90, 100)

# Unicode categories of control, format and separator characters and of unpaired surrogates.
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
MARKS = "┊␣‹›\\"

# How a masked token is shown: its ANSI color, its format, and what that means.
MASKED_AS = {
    "mask": (31, "{0}", "as [MASK]"),
    "random": (33, "{0}→{1}", "as a random token"),
    "kept": (32, "{0}=", "unchanged"),
}


def collator_of(rows: Rows, mask_rate: float, seed: int = 0) -> DataCollatorForWholeWordMasking:
    """The collator that masks these rows in pretraining, at a fixed rate."""
    return DataCollatorForWholeWordMasking.for_rows(rows, seed=seed, mask_rate=mask_rate)


def byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte of each byte token, by id."""
    return {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}


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
                texts.append(f"<0x{ord(character) - 0xDC00:02X}>")
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


def count_rows(rows: Rows, tokenizer: Tokenizer) -> tuple[Counter, dict[str, np.ndarray]]:
    """Counts the tokens of a row set, and the lengths of its parts.

    Returns:
        The number of tokens that are `text`, `padding`, `word starts` and `bytes`; and for each
        kind of length an int64 array, in which element n is the number of parts of length n.
    """
    collator = collator_of(rows, 0.0)
    byte_ids = list(byte_values(tokenizer))
    totals = Counter()
    pieces = np.zeros(rows.seq_len + 1, dtype=np.int64)
    pieces_per_row = np.zeros(rows.seq_len + 1, dtype=np.int64)
    units = np.zeros(MAX_UNIT_TOKENS + 1, dtype=np.int64)
    for first in tqdm(range(0, len(rows), BATCH_ROWS), unit=f" × {BATCH_ROWS} rows"):
        last = min(first + BATCH_ROWS, len(rows))
        ids, starts = split_row(np.stack([rows[index] for index in range(first, last)]))
        begins = ids == collator.cls_id
        pieces_per_row += np.bincount(begins.sum(axis=1), minlength=len(pieces_per_row))
        text, _, unit_lengths = collator.units(ids, starts)
        ids, starts = ids.ravel(), starts.ravel()
        units += np.bincount(unit_lengths, minlength=len(units))
        piece_lengths = np.bincount(begins.cumsum()[text] - 1)
        pieces += np.bincount(piece_lengths, minlength=len(pieces))
        totals["text"] += len(text)
        totals["padding"] += int((ids == collator.pad_id).sum())
        totals["word starts"] += int(starts[text].sum())
        totals["bytes"] += int(np.isin(ids[text], byte_ids).sum())
    names = ("tokens of a piece", "pieces of a row", "tokens of a mask unit")
    return totals, dict(zip(names, (pieces, pieces_per_row, units), strict=True))


def percentile(counts: np.ndarray, percent: int) -> int:
    """The smallest length that is not exceeded by this percentage of `counts`."""
    up_to = counts.cumsum()
    return int(np.searchsorted(100 * up_to, max(1, percent * up_to[-1])))


def table(lines: list[list]) -> str:
    """Aligns lines of cells in columns, the first to the left and the others to the right."""
    formats = {int: "{:,}", float: "{:.2f}"}
    cells = [[formats.get(type(cell), "{}").format(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    )


def show_statistics(rows: Rows, totals: Counter, lengths: dict[str, np.ndarray]) -> str:
    """Tables of the results of `count_rows`, and of the domains if the manifest has them."""
    summary = [
        ["rows", len(rows)],
        ["tokens per row", rows.seq_len],
        ["padding", f"{totals['padding'] / (len(rows) * rows.seq_len):.2%}"],
        ["documents", rows.manifest["documents"]],
        ["pieces, after long documents are cut", int(lengths["tokens of a piece"].sum())],
        ["tokens of text", totals["text"]],
        ["  that start a word", f"{totals['word starts'] / totals['text']:.2%}"],
        ["  that are bytes", f"{totals['bytes'] / totals['text']:.2%}"],
        ["tokens per word, mean", totals["text"] / totals["word starts"]],
    ]
    spread = [["", "count", "mean", *(f"{percent} %" for percent in PERCENTS)]]
    for name, counts in lengths.items():
        mean = float(np.average(np.arange(len(counts)), weights=counts))
        percentiles = [percentile(counts, percent) for percent in PERCENTS]
        spread.append([name, int(counts.sum()), mean, *percentiles])
    tables = [summary, spread]
    if domains := rows.manifest.get("domains"):
        columns = list(dict.fromkeys(key for facts in domains.values() for key in facts))
        tables.append([["domain", *columns]])
        for name, facts in domains.items():
            tables[-1].append([name, *(facts.get(column, "") for column in columns)])
    return "\n\n".join(map(table, tables))


def draw_statistics(lengths: dict[str, np.ndarray], picture: Path) -> None:
    """Saves a histogram of each kind of length as a PNG file."""
    figure = Figure(figsize=(9, 8))
    axes = figure.subplots(len(lengths), 1)
    for axis, (name, counts) in zip(axes, lengths.items(), strict=True):
        most = percentile(counts, 100)
        width = max(1, most // 64)
        edges = np.arange(0.5, most + width + 0.5, width)
        axis.hist(np.arange(len(counts)), bins=edges, weights=counts)
        axis.set_xlabel(name)
        axis.set_ylabel("count")
        axis.grid(alpha=0.3)
    save_picture(figure, picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="the folder of the row set")
    parser.add_argument("--tokenizer", type=Path, default=Path("."), help="its folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", type=int, help="show this row; the first is 0")
    what.add_argument("--statistics", action="store_true", help="show statistics of all rows")
    parser.add_argument("--mask_rate", type=float, help="with --row: mask it at this rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mask")
    parser.add_argument(
        "--picture", type=Path, help="with --statistics: save histograms to this PNG file"
    )
    arguments = parser.parse_args()
    if arguments.statistics and arguments.mask_rate is not None:
        parser.error("--mask_rate requires --row")
    if arguments.picture is not None and not arguments.statistics:
        parser.error("--picture requires --statistics")
    sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal without Chinese
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        rows, tokenizer = open_with_tokenizer(
            arguments.rows, arguments.tokenizer / "tokenizer.json"
        )
        if arguments.row is not None:
            masking = (arguments.mask_rate, arguments.seed, color)
            print(show_row(rows, arguments.row, tokenizer, *masking))
            return
        totals, lengths = count_rows(rows, tokenizer)
        print(show_statistics(rows, totals, lengths))
        if arguments.picture is not None:
            draw_statistics(lengths, arguments.picture)
            print(f"wrote {arguments.picture}")
    except (OSError, ValueError) as error:
        sys.exit(f"inspect_rows: {error}")


if __name__ == "__main__":
    main()
