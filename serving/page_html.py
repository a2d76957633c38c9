"""The results of the demo page as HTML: one function for each result, all text escaped."""

from collections.abc import Sequence
from html import escape

import numpy as np

from serving.page import FilledText, JudgedWord, Piece
from serving.runtime import Fill

# White space that would not be seen.
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "□"})

# Colors work on a light and on a dark page: they lie transparent on its own.
STYLE = """
.gradio-container { max-width: 1040px !important; margin: 0 auto !important; }
.cm { font-size: 16px; line-height: 1.6; color: var(--body-text-color); }
.cm-head { padding: 18px 4px 6px; }
.cm-head h1 { font-size: 30px; font-weight: 700; letter-spacing: .01em; margin: 0 0 4px; }
.cm-head p { margin: 0; color: var(--body-text-color-subdued); font-size: 15px; }
.cm-hint { color: var(--body-text-color-subdued); font-size: 14px; padding: 2px 4px 0; }
.cm-card { border: 1px solid var(--border-color-primary); border-radius: 14px;
  background: var(--block-background-fill); padding: 18px 20px; }
.cm-card + .cm-card { margin-top: 14px; }
.cm-text { font-size: 21px; line-height: 2.05; overflow-wrap: anywhere; white-space: pre-wrap; }
.cm-word { border-radius: 6px; padding: 3px 3px; margin: 0 1px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.cm-word.filled { padding: 4px 9px; font-weight: 650; }
.cm-grid { display: grid; gap: 14px; margin-top: 14px;
  grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.cm-grid .cm-card { margin: 0; }
.cm-title { font-size: 13px; font-weight: 600; color: var(--body-text-color-subdued);
  margin: 0 0 10px; letter-spacing: .02em; }
.cm-bar { display: grid; grid-template-columns: 5.2em 1fr 4.2em; gap: 12px; align-items: center;
  font-size: 17px; padding: 3px 0; }
.cm-bar b { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.cm-track { height: 10px; border-radius: 5px; background: rgba(128, 138, 150, .18); }
.cm-track i { display: block; height: 10px; border-radius: 5px; min-width: 3px; }
.cm-share { text-align: right; font-variant-numeric: tabular-nums; font-size: 15px;
  color: var(--body-text-color-subdued); }
.cm-foot { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 12px; padding: 0 4px;
  font-size: 13px; color: var(--body-text-color-subdued); }
.cm-note { border-left: 4px solid #d9a21b; background: rgba(217, 162, 27, .12);
  border-radius: 8px; padding: 10px 16px; margin-top: 14px; font-size: 15px; }
.cm-error { border-left: 4px solid #d1495b; background: rgba(209, 73, 91, .12);
  border-radius: 8px; padding: 14px 18px; font-size: 16px; }
.cm-legend { display: flex; align-items: center; gap: 10px; font-size: 13px; margin-top: 14px;
  color: var(--body-text-color-subdued); }
.cm-legend i { width: 180px; height: 10px; border-radius: 5px; }
.cm-stats { display: flex; flex-wrap: wrap; gap: 10px 32px; margin-bottom: 16px; }
.cm-stats div { font-size: 13px; color: var(--body-text-color-subdued); }
.cm-stats b { display: block; font-size: 24px; font-weight: 650; line-height: 1.25;
  color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.cm-pieces { display: flex; flex-wrap: wrap; gap: 12px 8px; }
.cm-labels, .cm-piece { display: grid; gap: 4px; grid-template-rows: 34px 34px 30px; }
.cm-labels { align-items: center; font-size: 12.5px; padding-right: 10px;
  color: var(--body-text-color-subdued); }
.cm-row { display: flex; gap: 4px; justify-content: stretch; }
.cm-row span { flex: 1 0 auto; text-align: center; padding: 2px 8px; border-radius: 7px;
  font-size: 17px; line-height: 30px; white-space: nowrap; }
.cm-row.words span { background: rgba(47, 111, 214, .20); }
.cm-row.tokens span { background: rgba(21, 148, 128, .22); }
.cm-row.tokens span.byte { font: 12px/30px ui-monospace, monospace; }
.cm-row.characters span { background: rgba(128, 138, 150, .14); font-size: 15px;
  line-height: 26px; }
.cm-scroll { overflow-x: auto; }
.cm table.cm-heat { border-collapse: separate; border-spacing: 4px; width: 100%; margin: 0;
  table-layout: auto; border: 0; }
.cm table.cm-heat th, .cm table.cm-heat td { border: 0; padding: 0; background: none; }
.cm table.cm-heat th { font-weight: 400; font-size: 14.5px; text-align: left;
  color: var(--body-text-color); }
.cm table.cm-heat th.top { text-align: center; color: var(--body-text-color-subdued); }
.cm table.cm-heat th div { max-width: 360px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; padding-right: 10px; }
.cm table.cm-heat th small { color: var(--body-text-color-subdued); margin-right: 8px;
  font-size: 13px; }
.cm table.cm-heat td { text-align: center; height: 46px; min-width: 56px; border-radius: 8px;
  font-size: 15px; font-variant-numeric: tabular-nums; }
.cm-hit { display: grid; grid-template-columns: 3.4em 1fr; gap: 14px; padding: 12px 0;
  border-top: 1px solid var(--border-color-primary); }
.cm-hit:first-of-type { border-top: 0; padding-top: 0; }
.cm-hit .score { font-size: 15px; font-weight: 600; text-align: center; border-radius: 8px;
  height: 30px; line-height: 30px; font-variant-numeric: tabular-nums; }
.cm-hit small { display: block; color: var(--body-text-color-subdued); font-size: 12.5px; }
.cm-entity { border-radius: 7px; padding: 4px 8px; margin: 0 2px; }
.cm-entity small { font-size: 12px; font-weight: 600; margin-left: 7px; opacity: .75; }
"""

# Hues of the types of entities, in the order in which they turn up.
HUES = (212, 28, 160, 280, 350, 60, 190, 320, 100, 240)


def color(share: float, opacity: float = 0.42) -> str:
    """From orange (0) by yellow to green-blue (1); told apart without red and green."""
    hue = 24 + 150 * min(max(share, 0), 1)
    return f"hsla({hue:.0f}, 72%, 45%, {opacity})"


def legend(low: str, high: str) -> str:
    """The scale of `color`, its ends in words."""
    stops = ", ".join(color(step / 4) for step in range(5))
    return (
        f'<div class="cm-legend">{low}<i style="background: linear-gradient(90deg, {stops})"></i>'
        f"{high}</div>"
    )


def percent(share: float) -> str:
    """A probability, with a digit behind the point where it is small."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def shown(token: str) -> str:
    """A token or word, white space made visible."""
    return escape(token.translate(VISIBLE))


def card(content: str, title: str = "") -> str:
    heading = f'<p class="cm-title">{title}</p>' if title else ""
    return f'<div class="cm-card">{heading}{content}</div>'


def note(message: str) -> str:
    """A remark beside a result."""
    return f'<div class="cm-note">{escape(message)}</div>'


def page(*parts: str) -> str:
    """Parts of a result, one below the other."""
    return f'<div class="cm">{"".join(parts)}</div>'


def error(message: str) -> str:
    """What went wrong, in place of a result."""
    return page(f'<div class="cm-error" role="alert">{escape(message)}</div>')


def foot(*remarks: str) -> str:
    """Small print below a result."""
    return f'<div class="cm-foot">{"".join(f"<span>{escape(r)}</span>" for r in remarks)}</div>'


def bars(fills: Sequence[Fill]) -> str:
    """Tokens and their probabilities; the bars begin at 0 and end at 1."""
    return "".join(
        f'<div class="cm-bar"><b>{shown(fill.token)}</b><div class="cm-track"><i style="width: '
        f'{fill.probability:.2%}; background: {color(fill.probability, 0.85)}"></i></div>'
        f'<span class="cm-share">{percent(fill.probability)}</span></div>'
        for fill in fills
    )


def filled(result: FilledText) -> str:
    """The text with its likeliest fills, and the five likeliest of each mask."""
    text = escape(result.parts[0])
    for fills, part in zip(result.fills, result.parts[1:], strict=True):
        best = fills[0]
        text += (
            f'<span class="cm-word filled" title="{percent(best.probability)}" style="background: '
            f'{color(best.probability)}">{shown(best.token)}</span>{escape(part)}'
        )
    cards = "".join(
        card(bars(fills), f"第 {number} 处 · Mask {number}")
        for number, fills in enumerate(result.fills, 1)
    )
    scale = legend("没把握 unsure", "有把握 sure")
    return card(f'<div class="cm-text">{text}</div>{scale}') + f'<div class="cm-grid">{cards}</div>'


def judged(words: Sequence[JudgedWord]) -> str:
    """A text whose words are colored by how much they were expected."""
    text = "".join(
        escape(word.text)
        if word.probability is None
        else f'<span class="cm-word" title="{percent(word.probability)}" style="background: '
        f'{color(word.probability**0.5)}">{escape(word.text)}</span>'
        for word in words
    )
    scale = legend("意外 unexpected", "意料之中 expected")
    return card(f'<div class="cm-text">{text}</div>{scale}')


def surprises(words: Sequence[JudgedWord], count: int = 5) -> str:
    """The words that were expected least."""
    known = [word for word in words if word.probability is not None]
    least = sorted(known, key=lambda word: word.probability)[:count]
    rows = bars([Fill(word.text, word.probability) for word in least])
    return f'<div class="cm-grid">{card(rows, "最意外的词 · Least expected")}</div>'


def pieces(parts: Sequence[Piece]) -> str:
    """Words, tokens and characters in three rows that share their borders."""
    words, tokens, characters = (
        sum(len(getattr(part, name)) for part in parts)
        for name in ("words", "tokens", "characters")
    )
    stats = (
        f"<div><b>{words:,}</b>词 words</div><div><b>{tokens:,}</b>词元 tokens</div>"
        f"<div><b>{characters:,}</b>字符 characters</div>"
        f"<div><b>{characters / tokens:.2f}</b>字符／词元 characters per token</div>"
    )
    labels = "<div>词<br>words</div><div>词元<br>tokens</div><div>字符<br>characters</div>"
    columns = "".join(piece(part) for part in parts)
    return card(
        f'<div class="cm-stats">{stats}</div><div class="cm-pieces">'
        f'<div class="cm-labels">{labels}</div>{columns}</div>'
    )


def piece(part: Piece) -> str:
    """One column of `pieces`."""
    words = "".join(f"<span>{shown(word)}</span>" for word in part.words)
    characters = "".join(f"<span>{shown(character)}</span>" for character in part.characters)
    tokens = "".join(
        f'<span class="{"byte" if token.startswith("<0x") else "token"}" title="{number}">'
        f"{shown(token)}</span>"
        for token, number in part.tokens
    )
    return (
        f'<div class="cm-piece"><div class="cm-row words">{words}</div>'
        f'<div class="cm-row tokens">{tokens}</div>'
        f'<div class="cm-row characters">{characters}</div></div>'
    )


def heat_map(texts: Sequence[str], cosines: np.ndarray) -> str:
    """Cosines of texts with each other, colored from the lowest to the highest of two texts."""
    apart = cosines[~np.eye(len(texts), dtype=bool)]
    low, high = float(apart.min()), float(apart.max())
    top = "".join(f'<th class="top">{number}</th>' for number in range(1, len(texts) + 1))
    rows = ""
    for number, (text, row) in enumerate(zip(texts, cosines, strict=True)):
        cells = "".join(
            '<td style="background: rgba(128, 138, 150, .12)">–</td>'
            if column == number
            else f'<td style="background: {color((value - low) / max(high - low, 1e-6))}">'
            f"{value:.2f}</td>"
            for column, value in enumerate(row)
        )
        label = f'<div title="{escape(text)}"><small>{number + 1}</small>{escape(text)}</div>'
        rows += f"<tr><th>{label}</th>{cells}</tr>"
    scale = legend(f"{low:.2f} 最不相似 least alike", f"{high:.2f} 最相似 most alike")
    return card(
        f'<div class="cm-scroll"><table class="cm-heat"><tr><th></th>{top}</tr>{rows}</table></div>'
        f"{scale}"
    )


def hits(passages: Sequence[str], found: Sequence[tuple[int, float]]) -> str:
    """Passages that a search found, best first."""
    low, high = found[-1][1], found[0][1]
    return card(
        "".join(
            f'<div class="cm-hit"><div class="score" style="background: '
            f'{color((cosine - low) / max(high - low, 1e-6))}">{cosine:.2f}</div>'
            f"<div>{escape(passages[number])}<small>第 {number + 1} 段 passage "
            f"{number + 1}</small></div></div>"
            for number, cosine in found
        ),
        "最接近的段落 · Nearest passages",
    )


def entities(text: str, found: Sequence[dict]) -> str:
    """A text with its entities colored by type; `found` as transformers' pipeline gives them."""
    hues: dict[str, int] = {}
    content, end = "", 0
    for entity in found:
        kind = entity["entity_group"]
        hue = hues.setdefault(kind, HUES[len(hues) % len(HUES)])
        content += escape(text[end : entity["start"]]) + (
            f'<span class="cm-entity" title="{percent(entity["score"])}" style="background: '
            f'hsla({hue}, 72%, 45%, .28)">{escape(text[entity["start"] : entity["end"]])}'
            f"<small>{escape(kind)}</small></span>"
        )
        end = entity["end"]
    return card(f'<div class="cm-text">{content}{escape(text[end:])}</div>')
