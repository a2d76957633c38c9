"""Shows prepared rows: one of them as text, or the statistics of them all.

python -m pretraining.inspect_rows rows/train-1024 --tokenizer . --row 17 --mask_rate 0.3
python -m pretraining.inspect_rows rows/train-1024 --tokenizer . --statistics --picture rows.png
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm

from data_collator_wwm import MAX_UNIT_TOKENS, split_row
from pretraining.command import readable_errors
from pretraining.data.display import MARKING, byte_values, collator_of, show_row, shows_color
from pretraining.data.encoding import open_with_tokenizer
from pretraining.data.rows import Rows
from pretraining.run.pictures import save_picture

BATCH_ROWS = 256
PERCENTS = (0, 10, 25, 50, 75, 90, 100)


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
        description=f"{__doc__}\n{MARKING}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", help="the folder of the row set")
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
    color = shows_color()
    with readable_errors("inspect_rows"):
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


if __name__ == "__main__":
    main()
