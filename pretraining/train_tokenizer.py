"""Trains the tokenizer: BPE over characters with byte fallback, whose merges respect words.

    python -m pretraining.train_tokenizer --corpus data/train-*.jsonl.xz --output . \\
        --report data/valid.jsonl.xz --beside vocab.txt

Words are marked with a separator in the training text, and merges cross neither it nor the borders
between kinds of characters. So tokens follow Chinese words, and the finished tokenizer needs no
segmenter. Nothing is normalised: what is decoded is what was encoded.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from pretraining.data.corpus import Document, read_documents
from pretraining.data.encoding import token_lengths
from pretraining.data.rows import MAX_VOCAB_SIZE
from pretraining.data.words import Segmenter
from pretraining.files import replacing
from pretraining.tokenizer.sampling import Sample, share
from pretraining.tokenizer.vocabulary import (
    BYTES,
    RESERVED,
    SPECIAL_TOKENS,
    alphabet,
    guaranteed,
    shrink,
)
from pretraining.tokenizer_report import add_peers, open_peer, print_report
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

# A noncharacter, which has no place in text: marks word borders while training.
SEPARATOR = "\ufdd0"

# The segmenter also cuts at every blank, line end and sign; there the kinds decide, or no run of
# blanks would ever become a token.
_BESIDE_OTHERS = regex.compile(rf"(?<!\p{{Han}}){SEPARATOR}|{SEPARATOR}(?!\p{{Han}})")

# Runs of Han characters, of other letters, of line ends, of spaces and of ASCII punctuation; each
# digit and each other sign, CJK punctuation above all, stands alone.
KINDS = (
    r"\p{Han}+|[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}|[\r\n]+|[^\S\r\n]+"
    r"|[\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]+|[^\s\p{L}\p{M}\p{N}]"
)

# Longest token in characters; the trainer's limit counts one more than it lets through.
MAX_TOKEN_LENGTH = 16

# A stratum with less text than this is repeated, but not so often that single texts are learnt.
REPEATED_UP_TO = 8_000_000
MAX_REPEATS = 8

# Share of the simplified text that is shown once more in traditional characters.
TRADITIONAL_SHARE = 0.08

# A token that no merge builds on is taken out again if more than this share of its uses lie across
# a word border. So many entries more than asked for are trained to make up for these.
CROSSING_SHARE = 2 / 3
SURPLUS = 256


def marked_texts(sample: Sample, seed: int) -> list[tuple[str, int]]:
    """The texts of a sample with their word borders marked, and how often each is to be shown."""
    import opencc

    to_traditional = opencc.OpenCC("s2t").convert
    segment = Segmenter().segment
    shown: list[tuple[str, int]] = []

    def show(texts: list[str], repeats: int) -> None:
        for text in texts:
            shown.append((_BESIDE_OTHERS.sub("", SEPARATOR.join(segment(text))), repeats))

    for (_, script), texts in tqdm(sample.strata(), desc="segment", unit=" strata"):
        wanted = min(REPEATED_UP_TO, sample.budget)
        factor = min(MAX_REPEATS, max(1, wanted / sum(map(len, texts))))
        whole, rest = divmod(factor, 1)
        once_more = set(share(texts, rest, seed))
        show([text for text in texts if text not in once_more], int(whole))
        show([text for text in texts if text in once_more], int(whole) + 1)
        if script != "hant":
            show(list(map(to_traditional, share(texts, TRADITIONAL_SHARE * factor, seed + 1))), 1)
    return shown


def learn(shown: list[tuple[str, int]], characters: set[str], vocab_size: int) -> Tokenizer:
    """Merges and vocabulary by BPE; the text decides how much of the size is filled."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SEPARATOR, behavior="removed"),
            pre_tokenizers.Split(Regex(KINDS), behavior="isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *RESERVED, *BYTES],
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
    """Tokens that mostly stand across a word border and that no merge builds on, the worst first.

    BPE learns them where the segmenter joins what it usually parts, as in 在我 or 更高.
    """
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    lengths = token_lengths(tokenizer)
    used, crossing = np.zeros((2, len(lengths)), dtype=np.int64)
    for first in tqdm(range(0, len(shown), 256), desc="check borders", unit_scale=256, unit=" doc"):
        words = [marked.split(SEPARATOR) for marked, _ in shown[first : first + 256]]
        texts = ["".join(each) for each in words]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for each, text, encoding in zip(words, texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            ends = lengths[ids].cumsum()
            starts = ends - lengths[ids]
            borders = np.zeros(len(text) + 1, dtype=np.int64)
            borders[np.fromiter(map(len, each), dtype=np.int64, count=len(each)).cumsum()] = 1
            before = borders.cumsum()  # borders at or before a position
            crosses = (lengths[ids] > 1) & (before[ends - 1] > before[starts])
            used += np.bincount(ids, minlength=len(used))
            crossing += np.bincount(ids[crosses], minlength=len(used))
    parts = {part for merge in content["model"]["merges"] for part in merge}
    entries = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    worst = np.argsort(-crossing, kind="stable")
    mostly = [entries[index] for index in worst if crossing[index] > CROSSING_SHARE * used[index]]
    return [token for token in mostly if token not in parts]


def train(documents: Iterable[Document], vocab_size: int, budget: int, seed: int) -> dict:
    """Trains on documents; returns the content of tokenizer.json.

    Args:
        budget: characters to learn from for each domain and script.

    Raises:
        ImportError: if rjieba or opencc is not installed.
        ValueError: if the text is too small or `vocab_size` too large to fill the vocabulary.
    """
    sample, counts = Sample(budget, seed), Counter()
    for document in tqdm(documents, desc="read", unit=" doc"):
        sample.add(document)
        counts.update(document.text)
    characters = alphabet(counts)
    characters.discard(SEPARATOR)
    shown = marked_texts(sample, seed)
    tokenizer = learn(shown, characters, vocab_size + SURPLUS)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"only {tokenizer.get_vocab_size()} of {vocab_size} entries could be trained; give "
            "more text or a smaller --vocab_size."
        )
    # No merge leads across kinds, so parting these again would change no token and take half of the
    # time. Sentences are parted, to keep the work on a long text in pieces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("。", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    cls, sep = ("[CLS]", 2), ("[SEP]", 3)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    content = json.loads(tokenizer.to_str())
    # The trainer knows no byte fallback: it took the bytes for special tokens, and would find
    # "<0x41>" or "[unused1]" in ordinary text.
    content["model"]["byte_fallback"] = True
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] in SPECIAL_TOKENS
    ]
    surplus = tokenizer.get_vocab_size() - vocab_size
    shrink(content, vocab_size, set(across_borders(content, shown)[:surplus]))
    return content


def save(content: dict, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, each complete or not at all."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    with replacing(folder / "tokenizer.json") as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        ChineseModernBertTokenizer(
            tokenizer_file=str(temporary),
            **dict(zip(names, SPECIAL_TOKENS, strict=True)),
            model_max_length=8192,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument(
        "--characters_per_stratum",
        type=int,
        default=17_000_000,
        help="most text to learn from for each domain and script (default: 17,000,000)",
    )
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", nargs="+", help="held-out corpus to measure on")
    add_peers(parser)
    arguments = parser.parse_args()
    smallest = len(SPECIAL_TOKENS + RESERVED + BYTES) + len(guaranteed())
    if not smallest < arguments.vocab_size <= MAX_VOCAB_SIZE:
        parser.error(f"--vocab_size must be more than {smallest} and at most {MAX_VOCAB_SIZE}.")
    try:
        peers = {name: open_peer(name) for name in arguments.beside}
        documents = read_documents(arguments.corpus, arguments.text_field)
        content = train(
            documents, arguments.vocab_size, arguments.characters_per_stratum, arguments.seed
        )
        save(content, arguments.output)
        if arguments.report:
            print_report(arguments.output / "tokenizer.json", arguments.report, peers)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"train_tokenizer: {error}")


if __name__ == "__main__":
    main()
