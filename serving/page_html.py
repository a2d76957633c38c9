"""The results of the demo page as HTML: one function for each result, all text escaped."""

from collections.abc import Sequence
from html import escape

import numpy as np

from serving.page import FilledText, JudgedWord, Piece
from serving.runtime import Fill

# White space that would not be seen.
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "□"})

# Colors lie transparent on the page's own, so that they work on a light and on a dark one.
TEAL, ORANGE = "13, 148, 136", "224, 112, 32"

STYLE = """
.gradio-container { width: 100% !important; max-width: 1000px !important;
  margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container textarea, .gradio-container input[type=text] { font-size: 18px !important;
  line-height: 1.6 !important; }
.gradio-container .block:has(> label > .input-container) { padding: 16px 20px; }
.gradio-container .gallery-item { font-size: 14.5px; white-space: normal; text-align: left; }
.cm { font-size: 16px; line-height: 1.6; color: var(--body-text-color); }
.cm-head { padding: 14px 0 0; }
.cm-head h1 { font-size: 32px; font-weight: 700; margin: 0 0 6px; }
.cm-head p, .cm-hint { margin: 0; color: var(--body-text-color-subdued); font-size: 15px;
  line-height: 1.6; }
.cm-hint { padding: 6px 0 0; }
.cm-card { border: 1px solid var(--border-color-primary); border-radius: 14px;
  background: var(--block-background-fill); padding: 20px 22px; }
.cm-text { font-size: 22px; line-height: 2.05; overflow-wrap: anywhere; white-space: pre-wrap; }
.cm-word { border-radius: 6px; padding: 4px 4px; margin: 0 1px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.cm-word.filled { padding: 4px 10px; margin: 0 3px; font-weight: 650;
  border-bottom: 2px solid rgba(TEAL, .7); }
.cm-grid { display: grid; gap: 14px; margin-top: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); }
.cm-grid .cm-card { max-width: 480px; }
.cm-title { font-size: 14px; font-weight: 600; color: var(--body-text-color-subdued);
  margin: 0 0 10px; }
.cm-bars { display: grid; grid-template-columns: minmax(2.6em, auto) 1fr auto; gap: 6px 16px;
  align-items: center; font-size: 18px; }
.cm-bar { display: contents; }
.cm-bar b { font-weight: 600; }
.cm-track { height: 10px; border-radius: 5px; background: rgba(128, 138, 150, .18); }
.cm-track i { display: block; height: 10px; border-radius: 5px; min-width: 3px;
  background: rgba(TEAL, .85); }
.cm-share { text-align: right; font-variant-numeric: tabular-nums; font-size: 15px; }
.cm-foot { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 12px; font-size: 13px; }
.cm .cm-foot span, .cm .cm-share { color: var(--body-text-color-subdued); }
.cm-note, .cm-done, .cm-error { border-left: 4px solid rgb(217, 162, 27); border-radius: 8px;
  background: rgba(217, 162, 27, .13); padding: 10px 16px; margin-top: 14px; font-size: 15px; }
.cm-done { border-color: rgb(TEAL); background: rgba(TEAL, .12); margin-top: 0; }
.cm-error { border-color: rgb(209, 73, 91); background: rgba(209, 73, 91, .12); margin-top: 0;
  padding: 14px 18px; font-size: 16px; }
.cm-legend { display: flex; align-items: center; gap: 10px; font-size: 13px; margin-top: 16px;
  color: var(--body-text-color-subdued); }
.cm-legend i { width: 200px; height: 10px; border-radius: 5px; }
.cm-stats { display: flex; flex-wrap: wrap; gap: 12px 36px; margin-bottom: 22px; }
.cm-stats div { font-size: 14px; color: var(--body-text-color-subdued); }
.cm-stats b { display: block; font-size: 26px; font-weight: 650; line-height: 1.3;
  color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.cm-stats i { display: inline-block; width: 13px; height: 13px; border-radius: 4px;
  margin-right: 6px; vertical-align: -1px; }
.cm-pieces { display: flex; flex-wrap: wrap; gap: 16px 8px; }
.cm-piece { display: grid; gap: 4px; }
.cm-row { display: flex; gap: 4px; }
.cm-row span { flex: 1 0 auto; text-align: center; padding: 0 9px; border-radius: 7px;
  font-size: 18px; line-height: 36px; height: 36px; white-space: nowrap; }
.cm-row span.byte { font: 12px/36px ui-monospace, monospace; }
.cm-row.characters span { font-size: 15px; height: 30px; line-height: 30px; }
.words span, i.words { background: rgba(47, 111, 214, .20); }
.tokens span, i.tokens { background: rgba(TEAL, .24); }
.characters span, i.characters { background: rgba(128, 138, 150, .16); }
.cm-scroll { overflow-x: auto; }
.cm table.cm-heat { border-collapse: separate; border-spacing: 4px; width: 100%; margin: 0;
  border: 0; }
.cm table.cm-heat :is(tr, th, td) { border: 0; padding: 0; background: none; }
.cm table.cm-heat th { font-weight: 400; font-size: 16px; text-align: left;
  color: var(--body-text-color); }
.cm table.cm-heat th.top { text-align: center; font-size: 14px;
  color: var(--body-text-color-subdued); }
.cm table.cm-heat th div { max-width: 340px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; padding-right: 12px; }
.cm table.cm-heat small { color: var(--body-text-color-subdued); margin-right: 10px;
  font-size: 14px; }
.cm table.cm-heat td { text-align: center; height: 48px; min-width: 54px; border-radius: 8px;
  font-size: 16px; font-variant-numeric: tabular-nums; }
.cm-hit { display: grid; grid-template-columns: 3.6em 1fr; gap: 16px; padding: 13px 0;
  border-top: 1px solid var(--border-color-primary); font-size: 17px; }
.cm-hit:first-of-type { border-top: 0; padding-top: 2px; }
.cm-hit:last-of-type { padding-bottom: 0; }
.cm-hit .score { font-size: 15px; font-weight: 600; text-align: center; border-radius: 8px;
  height: 30px; line-height: 30px; font-variant-numeric: tabular-nums; }
.cm-hit small { display: block; color: var(--body-text-color-subdued); font-size: 13px; }
.cm-entity { border-radius: 7px; padding: 4px 8px; margin: 0 2px; }
.cm-entity small { font-size: 12px; font-weight: 600; margin-left: 7px; opacity: .75; }
@media (max-width: 600px) {
  .cm-card { padding: 16px; }
  .cm-text { font-size: 20px; }
  .cm table.cm-heat th div { max-width: 120px; }
}
""".replace("TEAL", TEAL)

# Hues of the types of entities, in the order in which they turn up.
HUES = (212, 28, 160, 280, 350, 60, 190, 320, 100, 240)


def confidence(probability: float) -> str:
    """From orange (0) by nearly nothing (an eighth) to teal (1); needs no red and green to tell.

    Probabilities of words crowd near 0, their cube roots do not.
    """
    place = 2 * min(max(probability, 0), 1) ** (1 / 3) - 1
    return f"rgba({TEAL if place > 0 else ORANGE}, {0.08 + 0.47 * abs(place):.2f})"


def closeness(cosine: float, low: float, high: float) -> str:
    """From nearly nothing (`low`) to teal (`high`)."""
    share = (cosine - low) / (high - low) if high > low else 1
    return f"rgba({TEAL}, {0.06 + 0.54 * min(max(share, 0), 1):.2f})"


def legend(low: str, high: str, colors: Sequence[str]) -> str:
    """A scale of colors, its ends in words."""
    stops = ", ".join(colors)
    return (
        f'<div class="cm-legend">{low}<i style="background: linear-gradient(90deg, {stops})"></i>'
        f"{high}</div>"
    )


def confidence_legend(low: str, high: str) -> str:
    """The scale of `confidence`."""
    return legend(f"0% {low}", f"100% {high}", [confidence((step / 8) ** 3) for step in range(9)])


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


def done(message: str) -> str:
    """What has been done."""
    return f'<div class="cm-done">{escape(message)}</div>'


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
    rows = "".join(
        f'<div class="cm-bar"><b>{shown(fill.token)}</b><div class="cm-track"><i style="width: '
        f'{fill.probability:.2%}"></i></div>'
        f'<span class="cm-share">{percent(fill.probability)}</span></div>'
        for fill in fills
    )
    return f'<div class="cm-bars">{rows}</div>'


def filled(result: FilledText) -> str:
    """The text with its likeliest fills, and the five likeliest of each mask."""
    text = escape(result.parts[0])
    for fills, part in zip(result.fills, result.parts[1:], strict=True):
        best = fills[0]
        text += (
            f'<span class="cm-word filled" title="{percent(best.probability)}" style="background: '
            f'{confidence(best.probability)}">{shown(best.token)}</span>{escape(part)}'
        )
    cards = "".join(
        card(bars(fills), f"第 {number} 处 · Mask {number}")
        for number, fills in enumerate(result.fills, 1)
    )
    scale = confidence_legend("没把握 unsure", "有把握 sure")
    return card(f'<div class="cm-text">{text}</div>{scale}') + f'<div class="cm-grid">{cards}</div>'


def judged(words: Sequence[JudgedWord]) -> str:
    """A text whose words are colored by how much they were expected."""
    text = "".join(
        escape(word.text)
        if word.probability is None
        else f'<span class="cm-word" title="{percent(word.probability)}" style="background: '
        f'{confidence(word.probability)}">{escape(word.text)}</span>'
        for word in words
    )
    scale = confidence_legend("意外 unexpected", "意料之中 expected")
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
        f'<div><b>{words:,}</b><i class="words"></i>词 words</div>'
        f'<div><b>{tokens:,}</b><i class="tokens"></i>词元 tokens</div>'
        f'<div><b>{characters:,}</b><i class="characters"></i>字符 characters</div>'
        f"<div><b>{characters / tokens:.2f}</b>字符／词元 characters per token</div>"
    )
    columns = "".join(map(piece, parts))
    return card(f'<div class="cm-stats">{stats}</div><div class="cm-pieces">{columns}</div>')


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
            else f'<td style="background: {closeness(value, low, high)}">{value:.2f}</td>'
            for column, value in enumerate(row)
        )
        label = f'<div title="{escape(text)}"><small>{number + 1}</small>{escape(text)}</div>'
        rows += f"<tr><th>{label}</th>{cells}</tr>"
    scale = legend(
        f"{low:.2f} 最不相似 least alike",
        f"{high:.2f} 最相似 most alike",
        [closeness(0, 0, 1), closeness(1, 0, 1)],
    )
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
            f'{closeness(cosine, low, high)}">{cosine:.2f}</div>'
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
