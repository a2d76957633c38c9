"""What a vocabulary holds before anything is learned: its reserved entries and its characters."""

from collections import Counter
from collections.abc import Collection

from pretraining.data.words import HAN

RESERVED = tuple(f"[unused{number}]" for number in range(64))

# Characters of written Cantonese that the national standards lack or count as rare.
CANTONESE = (
    "嘅咗喺哋啲嚟唔冇嘢乜咩佢嗰啱攞瞓睇諗揾搵畀俾咁噉噃喎啩嘞囉㗎嘥揸掟掹摷撳擺攰曱甴氹瓹"
    "癐餸飲靚叻孭孱屙嬲嗌嗱嘈嘜噏噚冚冧凼哂哣啖啫啷喐喼嘥嘭噍噪嚿埋埲奀嫲孻屘搣搲摙撈撩"
)

# Printable ASCII, dashes and quotation marks, Greek, circled digits, CJK signs and kana, full-width
# forms: what a text may need although the corpus did not.
SIGNS = (
    (0x20, 0x7E),
    (0x391, 0x3C9),
    (0x2010, 0x2027),
    (0x2460, 0x2469),
    (0x3000, 0x30FF),
    (0xFF01, 0xFF5E),
    (0xFFE0, 0xFFE6),
)

# A character joins the alphabet from this share of the text and two occurrences on. A rare Han
# character spelled in bytes costs three tokens and its meaning; a rare sign only the tokens.
HAN_SHARE = 4e-8
OTHER_SHARE = 1.6e-7


def is_han(character: str) -> bool:
    return HAN.match(character) is not None


def guaranteed() -> set[str]:
    """Characters that are tokens however rare they are, so never spelled in bytes.

    The Han characters of GB 2312, those of Big5's frequent plane and of written Cantonese, and the
    common signs.
    """
    alphabet = set(CANTONESE) | set("\t\n\r")
    for first, last in SIGNS:
        alphabet |= {chr(code) for code in range(first, last + 1) if chr(code).isprintable()}
    for codec, leads, trails in (
        ("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF)),
        ("big5", range(0xA4, 0xC7), range(0x40, 0xFF)),
    ):
        for pair in (bytes((lead, trail)) for lead in leads for trail in trails):
            character = pair.decode(codec, errors="ignore")
            if len(character) == 1 and is_han(character):
                alphabet.add(character)
    return alphabet


def alphabet(counts: Counter[str]) -> set[str]:
    """The guaranteed characters and those that are frequent enough in a text.

    Args:
        counts: how often the text has each character.
    """
    total = counts.total()
    least = {True: round(HAN_SHARE * total), False: round(OTHER_SHARE * total)}
    seen = {each for each, count in counts.items() if count >= max(2, least[is_han(each)])}
    return guaranteed() | seen


def shrink(content: dict, vocab_size: int, dropped: Collection[str] = ()) -> None:
    """Cuts a tokenizer to the first `vocab_size` entries that are not dropped, and renumbers them.

    Entries are in the order in which they were learned, so this is the vocabulary that the same
    training would have given at that size.

    Args:
        content: of tokenizer.json; changed in place.
        dropped: entries that no merge builds on.
    """
    model = content["model"]
    entries = sorted(model["vocab"], key=model["vocab"].get)
    kept = [each for each in entries if each not in dropped][:vocab_size]
    model["vocab"] = {each: index for index, each in enumerate(kept)}
    # Older files write a merge as "a b".
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
