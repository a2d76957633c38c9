"""Trains a tokenizer: BPE over characters with byte fallback, whose merges respect words.

Words are marked with a separator in the training text, and merges cross neither it nor the borders
between kinds of characters. So tokens follow Chinese words, and the finished tokenizer needs no
segmenter. Nothing is normalized: what is decoded is what was encoded.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from pretraining.data.corpus import Document
from pretraining.data.tokens import (
    BYTE_TOKENS,
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNKNOWN,
    token_lengths,
)
from pretraining.data.words import HAN, Segmenter, crosses_border
from pretraining.files import write_json
from pretraining.tokenizer.sampling import Sample, check_domains, share
from pretraining.tokenizer.vocabulary import RESERVED, alphabet, guaranteed, shrink
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

# Marks word borders while training: a noncharacter, which no text should hold.
SEPARATOR = "\ufdd0"

# The segmenter also cuts at every blank, line end and sign; there the kinds below decide, or no run
# of blanks would ever become a token.
_NEXT_TO_OTHERS = regex.compile(rf"(?<!{HAN.pattern}){SEPARATOR}|{SEPARATOR}(?!{HAN.pattern})")

# Entries that every vocabulary starts with.
FIXED = (*SPECIAL_TOKENS, *RESERVED, *BYTE_TOKENS)

# Runs of Han characters, of other letters, of line ends, of spaces and of ASCII punctuation; each
# digit and each other sign, CJK punctuation above all, stands alone.
KINDS = (
    r"\p{Han}+|[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}|[\r\n]+|[^\S\r\n]+"
    r"|[\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]+|[^\s\p{L}\p{M}\p{N}]"
)

# Longest token in characters; the trainer's limit counts one more than it lets through.
MAX_TOKEN_LENGTH = 16

# A stratum with less text than this is repeated, but not so often that single texts are learned.
REPEATED_UP_TO = 8_000_000
MAX_REPEATS = 8

# Share of the simplified text that is shown once more in traditional characters.
TRADITIONAL_SHARE = 0.08

# A token that no merge builds on is removed again if more than this share of its uses lie across a
# word border. SURPLUS more entries than asked for are trained, to make up for these.
CROSSING_SHARE = 2 / 3
SURPLUS = 256


def smallest_size() -> int:
    """The number of entries before anything is learned; a training needs at least one more."""
    return len(FIXED) + len(guaranteed())


def marked_texts(sample: Sample, seed: int, weights: Mapping[str, float]) -> list[tuple[str, int]]:
    """The texts of a sample with their word borders marked, and how often each is to be shown.

    Args:
        weights: for a domain, the factor by which its texts are shown more or less often than the
            amount of its text alone would have it.
    """
    import opencc

    to_traditional = opencc.OpenCC("s2t").convert
    segment = Segmenter().segment
    shown: list[tuple[str, int]] = []

    def show(texts: list[str], repeats: int) -> None:
        for text in texts if repeats else ():
            shown.append((_NEXT_TO_OTHERS.sub("", SEPARATOR.join(segment(text))), repeats))

    for (domain, script), texts in tqdm(sample.strata(), desc="segment", unit=" strata"):
        wanted = min(REPEATED_UP_TO, sample.budget)
        factor = min(MAX_REPEATS, max(1, wanted / sum(map(len, texts))))
        factor *= weights.get(domain, 1)
        whole, rest = divmod(factor, 1)
        # The sample keeps the lowest hashes of a domain that it cuts; a weight draws among them.
        once_more = set(share(texts, rest, seed + 2 if domain in weights else seed))
        show([text for text in texts if text not in once_more], int(whole))
        show([text for text in texts if text in once_more], int(whole) + 1)
        if script != "hant":
            show(list(map(to_traditional, share(texts, TRADITIONAL_SHARE * factor, seed + 1))), 1)
    return shown


def learn(shown: list[tuple[str, int]], characters: set[str], vocab_size: int) -> Tokenizer:
    """Merges and vocabulary by BPE; the text decides how much of the size is filled."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SEPARATOR, behavior="removed"),
            pre_tokenizers.Split(Regex(KINDS), behavior="isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(FIXED),
        initial_alphabet=sorted(characters),
        limit_alphabet=len(characters),
        max_token_length=MAX_TOKEN_LENGTH + 1,
    )
    tokenizer.train_from_iterator(
        (text for text, repeats in shown for _ in range(repeats)),
        trainer=trainer,
        length=sum(repeats for _, repeats in shown),
    )
    return tokenizer


def across_borders(content: dict, shown: list[tuple[str, int]]) -> list[str]:
    """Tokens that mostly lie across a word border and that no merge builds on, the worst first.

    BPE learns them where the segmenter joins what it usually separates, as in 在我 or 更高.
    """
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    lengths = token_lengths(tokenizer)
    used, crossing = np.zeros((2, len(lengths)), dtype=np.int64)
    for first in tqdm(range(0, len(shown), 256), desc="check borders", unit_scale=256, unit=" doc"):
        words = [marked.split(SEPARATOR) for marked, _ in shown[first : first + 256]]
        texts = ["".join(each) for each in words]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for each, encoding in zip(words, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            ends = lengths[ids].cumsum()
            starts = ends - lengths[ids]
            borders = np.fromiter(map(len, each), dtype=np.int64, count=len(each)).cumsum()
            crosses = crosses_border(borders, starts, ends)
            used += np.bincount(ids, minlength=len(used))
            crossing += np.bincount(ids[crosses], minlength=len(used))
    parts = {part for merge in content["model"]["merges"] for part in merge}
    entries = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    worst = np.argsort(-crossing, kind="stable")
    mostly = [entries[index] for index in worst if crossing[index] > CROSSING_SHARE * used[index]]
    return [token for token in mostly if token not in parts]


def train(
    documents: Iterable[Document],
    vocab_size: int,
    budget: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> dict:
    """Trains on documents and returns the content of tokenizer.json.

    Args:
        budget: characters to learn from for each domain and script.
        weights: for a domain, how many times as often its texts count as they would by themselves.

    Raises:
        ImportError: if rjieba or opencc is not installed.
        ValueError: if no document is of a weighted domain, or if the text is too small or
            `vocab_size` too large to fill the vocabulary.
    """
    weights = weights or {}
    sample, counts = Sample(budget, seed), Counter()
    for document in tqdm(documents, desc="read", unit=" doc"):
        sample.add(document)
        counts.update(document.text)
    check_domains(weights, sample.domains())
    characters = alphabet(counts)
    characters.discard(SEPARATOR)
    if (smallest := len(FIXED) + len(characters)) >= vocab_size:
        raise ValueError(
            f"--vocab_size {vocab_size} leaves no room for words: the characters of this text "
            f"and what belongs to every vocabulary take {smallest} entries."
        )
    shown = marked_texts(sample, seed, weights)
    tokenizer = learn(shown, characters, vocab_size + SURPLUS)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"only {tokenizer.get_vocab_size()} of {vocab_size} entries could be trained; give "
            "more text or a smaller --vocab_size."
        )
    # No merge leads across kinds, so splitting by them again would change no token and take half of
    # the time. Sentences are split, so that a long text is worked on in pieces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("。", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    content = json.loads(tokenizer.to_str())
    # The trainer knows no byte fallback and took the byte tokens for special ones; as such "<0x41>"
    # or "[unused1]" would be found in ordinary text.
    content["model"]["byte_fallback"] = True
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] in SPECIAL_TOKENS
    ]
    surplus = tokenizer.get_vocab_size() - vocab_size
    shrink(content, vocab_size, set(across_borders(content, shown)[:surplus]))
    return content


def save(content: dict, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / "tokenizer.json"
        write_json(file, content)
        ChineseModernBertTokenizer(
            tokenizer_file=str(file),
            pad_token=PAD,
            unk_token=UNKNOWN,
            cls_token=CLS,
            sep_token=SEP,
            mask_token=MASK,
            model_max_length=8192,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(temporary)
        write_json(file, content)  # not as the tokenizers library orders it
        for each in sorted(Path(temporary).iterdir()):
            os.replace(each, folder / each.name)
