"""The results of the demo page as HTML: one function for each result, all text escaped."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from serving.page import FilledText, JudgedWord, Piece
from serving.runtime import Fill

# White space that would not be seen.
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "□"})

STYLE = Path(__file__).with_name("page.css")

TEAL, ORANGE = "13, 148, 136", "224, 112, 32"


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


def surprises(words: Sequence[JudgedWord]) -> str:
    """The five words that were expected least."""
    known = [word for word in words if word.probability is not None]
    least = sorted(known, key=lambda word: word.probability)[:5]
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
        f"<div><b>{characters / max(tokens, 1):.2f}</b>字符／词元 characters per token</div>"
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
