"""Draws docs/at-a-glance.png, the README's picture, from the tables of results.md and tokenizer.md.

python docs/at_a_glance.py
"""

from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
OURS, COMPILED, PEER, WEAK = "#1f5fa8", "#7fb0e0", "#e08a3c", "#bdbdbd"

WORKLOADS = {
    "inference, 8 × 512 tokens": "8 × 512 tokens",
    "inference, 16 texts of 32–512": "16 texts of\n32–512 tokens",
    "inference, one text of 8,192": "one text of\n8,192 tokens",
}
TOKENIZED = {
    "technical": "technical",
    "law": "law",
    "encyclopedia": "encyclopedia",
    "encyclopedia, traditional": "encyclopedia,\ntraditional",
    "dialogue": "dialogue",
    "dialogue, Cantonese": "dialogue,\nCantonese",
    "classical": "classical",
}
HELD_OUT = {
    "dialogue (hans)": "dialogue",
    "dialogue (hant)": "dialogue,\ntraditional",
    "instruction (hans)": "instructions",
    "qa (hans)": "questions,\nanswers",
    "news (hans)": "news",
    "review (hans)": "reviews",
    "fiction (hans)": "fiction",
}


def read_table(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The Markdown table of a page whose first column has this heading: row -> column -> cell."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    columns, table = _cells(lines[start]), {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *values = _cells(line)
        table[name] = dict(zip(columns[1:], values, strict=True))
    return table


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def draw_bars(axes, table, rows: dict[str, str], sides: dict[str, tuple[str, str]], title: str):
    """Groups of horizontal bars: rows are name -> label, sides column -> (label, color)."""
    height = 0.8 / len(sides)
    for at, (column, (label, color)) in enumerate(sides.items()):
        texts = [table[row][column].partition(" ±")[0] for row in rows]
        values = [float(text.replace(",", "")) for text in texts]
        places = [row + (at - (len(sides) - 1) / 2) * height for row in range(len(rows))]
        bars = axes.barh(places, values, height * 0.92, color=color, label=label)
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), rows.values(), fontsize=9)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=11, loc="left", pad=26, fontweight="bold")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(sides), frameon=False,
        fontsize=8.5, columnspacing=1.0, handlelength=1.0, borderpad=0.1,
    )  # fmt: skip
    axes.set_xlim(right=axes.get_xlim()[1] * 1.08)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def main() -> None:
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    speed, tokens, quality = figure.subplots(1, 3)
    draw_bars(
        speed,
        read_table("results.md", "workload"),
        WORKLOADS,
        {
            "ours, `model.compile()`": ("ours, compiled", COMPILED),
            "ours": ("ours", OURS),
            "ModernBERT": ("transformers' ModernBERT", PEER),
        },
        "Tokens per second on two CPU cores",
    )
    draw_bars(
        tokens,
        read_table("tokenizer.md", "held-out text"),
        TOKENIZED,
        {"characters per token": ("ours", OURS), "legacy 21,128": ("legacy BERT vocabulary", PEER)},
        "Characters per token (more is better)",
    )
    draw_bars(
        quality,
        read_table("results.md", "held-out text"),
        HELD_OUT,
        {
            "bits per character, model": ("model at the root", OURS),
            "bits per character, 5-gram": ("5-gram", PEER),
            "bits per character, unigram": ("unigram", WEAK),
        },
        "Bits per character (less is better)",
    )
    figure.savefig(DOCS / "at-a-glance.png")


if __name__ == "__main__":
    main()
