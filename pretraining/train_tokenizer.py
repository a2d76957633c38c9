"""Trains the tokenizer: BPE over characters with byte fallback, whose merges respect words.

    python -m pretraining.train_tokenizer --corpus data/train-*.jsonl.xz --output . \\
        --report data/valid.jsonl.xz

Words are marked with a separator in the training text and the merges never cross it, so tokens
follow Chinese words; the finished tokenizer splits by kinds of characters alone and needs no
segmenter. Nothing is normalised: what is decoded is what was encoded.
"""

import argparse
import collections
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from pretraining.corpus import Document, read_documents
from pretraining.words import Segmenter
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RESERVED = [f"[unused{number}]" for number in range(64)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# A noncharacter, which has no place in text: marks word borders while training.
SEPARATOR = "\ufdd0"

# Runs of Han characters, of other letters, of line ends, of spaces and of ASCII punctuation; each
# digit and each other sign, CJK punctuation above all, stands alone.
KINDS = (
    r"\p{Han}+|[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}|[\r\n]+|[^\S\r\n]+"
    r"|[\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]+|[^\s\p{L}\p{M}\p{N}]"
)

# Longest token in characters; the trainer's limit counts one more than it lets through.
MAX_TOKEN_LENGTH = 16

# Share of the simplified text that is also shown in traditional characters.
TRADITIONAL_SHARE = 0.15

# A character seen this often in the training text is in the alphabet, beside the guaranteed ones.
MIN_CHARACTER_COUNT = 12


def guaranteed_alphabet() -> set[str]:
    """Characters that are tokens however rare: whoever writes them never meets byte tokens.

    All of GB 2312, the frequent plane of Big5, the characters of written Cantonese, printable
    ASCII, kana, full-width forms and common signs.
    """
    alphabet = {chr(code) for code in range(0x20, 0x7F)} | set("\t\n\r")
    for first, last in ((0xA1, 0xF7), (0xA4, 0xC6)):
        codec, trail = ("gb2312", (0xA1, 0xFE)) if last == 0xF7 else ("big5", (0x40, 0xFE))
        for lead in range(first, last + 1):
            for second in range(trail[0], trail[1] + 1):
                try:
                    character = bytes((lead, second)).decode(codec)
                except UnicodeDecodeError:
                    continue
                alphabet.add(character)
    alphabet |= set(
        "嘅咗喺哋啲嚟唔冇嘢乜咩佢嗰啱攞瞓睇諗揾搵畀俾咁噉噃喎啩嘞囉㗎嘥揸掟掹摷撳擺攰曱甴氹瓹"
    )
    alphabet |= set(
        "癐餸飲靚叻孭孱屙嬲嗌嗱嘈嘜噏噚冚冧凼哂哣啖啫啷喐喼嘥嘭噍噪嚿埋埲奀嫲孻屘搣搲摙撈撩"
    )
    for first, last in ((0x3000, 0x30FF), (0xFF01, 0xFF5E), (0xFFE0, 0xFFE6), (0x2010, 0x2027)):
        alphabet |= {chr(code) for code in range(first, last + 1) if chr(code).isprintable()}
    return alphabet


def training_documents(
    paths: list[str], characters_per_domain: int, seed: int
) -> Iterator[Document]:
    """Documents, up to a budget of characters for each domain and script.

    The budget keeps a domain that fills half of the corpus from filling half of the vocabulary.
    A part of the simplified documents comes a second time in traditional characters.
    """
    import opencc

    to_traditional = opencc.OpenCC("s2t").convert
    draw = random.Random(seed)
    used = collections.Counter()
    for document in read_documents(paths):
        stratum = (document.domain, document.script)
        if used[stratum] >= characters_per_domain:
            continue
        used[stratum] += len(document.text)
        yield document
        if document.script != "hant" and draw.random() < TRADITIONAL_SHARE:
            yield Document(
                to_traditional(document.text), *(document.domain, "hant", document.source_file, 0)
            )


def train(documents: list[Document], vocab_size: int) -> dict:
    """Trains on documents; returns the content of tokenizer.json.

    Raises:
        ValueError: if the text is too small or `vocab_size` too large to fill the vocabulary.
    """
    counts = collections.Counter()
    for document in tqdm(documents, desc="count characters", unit="doc"):
        counts.update(document.text)
    alphabet = guaranteed_alphabet()
    alphabet |= {each for each, count in counts.items() if count >= MIN_CHARACTER_COUNT}
    alphabet.discard(SEPARATOR)

    kinds = pre_tokenizers.Split(Regex(KINDS), behavior="isolated")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SEPARATOR, behavior="removed"), kinds]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *RESERVED, *BYTES],
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_TOKEN_LENGTH + 1,
    )
    segment = Segmenter().segment
    words = (SEPARATOR.join(segment(document.text)) for document in documents)
    tokenizer.train_from_iterator(words, trainer=trainer, length=len(documents))
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"only {tokenizer.get_vocab_size()} of {vocab_size} entries could be trained; give "
            "more text or a smaller --vocab_size."
        )
    tokenizer.pre_tokenizer = kinds
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
    return content


def save(content: dict, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".tokenizer.json"
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    ChineseModernBertTokenizer(
        tokenizer_file=str(temporary),
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    os.replace(temporary, folder / "tokenizer.json")


def report(tokenizer_file: Path, paths: list[str]) -> None:
    """Prints characters per token and the share of byte tokens, by domain and script."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    first, last = (tokenizer.token_to_id(each) for each in (BYTES[0], BYTES[-1]))
    characters, tokens, by_bytes = (collections.Counter() for _ in range(3))
    for document in read_documents(paths):
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        stratum = f"{document.domain} ({document.script})"
        characters[stratum] += len(document.text)
        tokens[stratum] += len(ids)
        by_bytes[stratum] += sum(first <= each <= last for each in ids)
    print(f"{'domain (script)':32} {'characters':>11} {'per token':>10} {'byte tokens':>12}")
    for stratum in sorted(characters):
        print(
            f"{stratum:32} {characters[stratum]:11,} "
            f"{characters[stratum] / tokens[stratum]:10.3f} "
            f"{by_bytes[stratum] / tokens[stratum]:12.3%}"
        )
    total = characters.total() / tokens.total()
    print(f"{'all':32} {characters.total():11,} {total:10.3f} ", end="")
    print(f"{by_bytes.total() / tokens.total():12.3%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--characters_per_domain", type=int, default=6_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", nargs="+", help="held-out corpus to measure on")
    arguments = parser.parse_args()
    try:
        documents = list(
            tqdm(
                training_documents(
                    arguments.corpus, arguments.characters_per_domain, arguments.seed
                ),
                desc="read",
                unit="doc",
            )
        )
        save(train(documents, arguments.vocab_size), arguments.output)
        if arguments.report:
            report(arguments.output / "tokenizer.json", arguments.report)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"train_tokenizer: {error}")


if __name__ == "__main__":
    main()
