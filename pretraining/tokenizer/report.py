"""What a tokenizer does with held-out text, compared with others: a Markdown table."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tqdm import tqdm
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.corpus import Document
from pretraining.data.tokens import BYTE_TOKENS, UNKNOWN, open_tokenizer
from pretraining.data.words import Segmenter, crosses_border
from pretraining.files import read_json, read_text
from pretraining.tokenizer.sampling import stratum_of
from pretraining.tokenizer.vocabulary import is_han, shrink

# Entries of the vocabulary that BERT and its Chinese successors have used since 2018.
LEGACY_SIZE = 21_128

BATCH = 64


def embedding_share(vocab_size: int) -> float:
    """Share of the paper's model that the embedding of so many entries takes."""
    config = ChineseModernBertConfig(vocab_size=vocab_size)
    with torch.device("meta"):
        parameters = ChineseModernBertForMaskedLM(config).num_parameters()
    return vocab_size * config.hidden_size / parameters


def open_peer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer to compare with: a BERT vocabulary (.txt), a folder or a Hub repository.

    Raises:
        OSError, ValueError: if there is none; the message names it.
    """
    if not name.endswith(".txt"):
        return PreTrainedTokenizerFast.from_pretrained(name)
    entries = read_text(Path(name)).split("\n")
    vocabulary = {entry: index for index, entry in enumerate(entries) if entry}
    if UNKNOWN not in vocabulary:
        raise ValueError(
            f"{name}: no entry {UNKNOWN}, so not a BERT vocabulary with an entry a line."
        )
    return BertTokenizerFast(vocab=vocabulary)


class Tally:
    """Counts what a tokenizer does with texts.

    Attributes:
        counts: characters, tokens, bytes (byte tokens), spelled (characters spelled in bytes),
            unknown (tokens), han (tokens of Han characters alone), crossing (those of them with a
            border between two words inside).
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.no_truncation()  # many on the Hub keep a length to truncate to
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab()
        self._bytes = [vocabulary[each] for each in BYTE_TOKENS if each in vocabulary]
        self._unknown = _unknown_id(tokenizer)
        self.counts = Counter()

    def add(self, texts: list[str], borders: list[np.ndarray]) -> None:
        """Counts texts, given the offsets at which their words begin."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, starts, encoding in zip(texts, borders, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            first, end = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
            han = np.array([0, *map(is_han, text)], dtype=np.int64).cumsum()
            of_han = (end > first) & (han[end] - han[first] == end - first)
            in_bytes = np.isin(ids, self._bytes)
            self.counts["characters"] += len(text)
            self.counts["tokens"] += len(ids)
            self.counts["bytes"] += int(in_bytes.sum())
            self.counts["spelled"] += len(np.unique(first[in_bytes]))
            self.counts["unknown"] += int((ids == self._unknown).sum())
            self.counts["han"] += int(of_han.sum())
            self.counts["crossing"] += int(crosses_border(starts, first, end)[of_han].sum())


def _unknown_id(tokenizer: Tokenizer) -> int:
    """The id that stands for what a tokenizer does not know, -1 if there is none."""
    if isinstance(tokenizer.model, Unigram):
        index = json.loads(tokenizer.to_str())["model"]["unk_id"]
    else:
        index = tokenizer.token_to_id(tokenizer.model.unk_token or "")
    return -1 if index is None else index


Report = dict[str, dict[str, Counter]]


def measure(tokenizers: dict[str, Tokenizer], documents: Iterable[Document]) -> Report:
    """For each domain and script, and for "all", what each tokenizer does: `Tally.counts`.

    Raises:
        ImportError: if rjieba or opencc is not installed.
        ValueError: if a document cannot be read.
    """
    word_starts = Segmenter().word_starts
    strata = defaultdict(list)
    for document in tqdm(documents, desc="read", unit=" doc"):
        strata[", ".join(stratum_of(document))].append(document.text)
    report = defaultdict(dict)
    for stratum in tqdm(sorted(strata), desc="measure", unit=" strata"):
        tallies = {name: Tally(tokenizer) for name, tokenizer in tokenizers.items()}
        for start in range(0, len(strata[stratum]), BATCH):
            texts = strata[stratum][start : start + BATCH]
            borders = list(map(word_starts, texts))
            for tally in tallies.values():
                tally.add(texts, borders)
        for name, tally in tallies.items():
            report[stratum][name] = tally.counts
    for name in tokenizers:
        report["all"][name] = sum(
            (counts[name] for counts in report.values() if name in counts), Counter()
        )
    return report


def as_markdown(report: Report) -> str:
    """The table; the first tokenizer is shown in full, the others by their compression."""
    own, *others = report["all"]
    losing = [name for name in others if report["all"][name]["unknown"]]
    head = ["domain, script", "characters", own, "characters in bytes", "tokens in bytes"]
    head += ["across words", *others, *(f"[UNK], {name}" for name in losing)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for stratum, by_name in report.items():
        counts = by_name[own]
        cells = [stratum, f"{counts['characters']:,}", _per_token(counts)]
        cells += [
            f"{counts[part] / max(1, counts[whole]):.2%}"
            for part, whole in (("spelled", "characters"), ("bytes", "tokens"), ("crossing", "han"))
        ]
        cells += [_per_token(by_name[name]) for name in others]
        cells += [
            f"{by_name[name]['unknown'] / max(1, by_name[name]['tokens']):.2%}" for name in losing
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _per_token(counts: Counter) -> str:
    return f"{counts['characters'] / max(1, counts['tokens']):.3f}"


def print_report(
    tokenizer_file: Path, documents: Iterable[Document], peers: dict[str, PreTrainedTokenizerFast]
) -> None:
    """Measures a tokenizer on documents and prints the table.

    Raises:
        ImportError, OSError, ValueError: if the tokenizer or the corpus cannot be read, or the
            corpus cannot be cut into words.
    """
    own = open_tokenizer(tokenizer_file)
    content = read_json(tokenizer_file)
    size = len(content["model"]["vocab"])
    tokenizers = {f"{size:,} entries": own}
    if size > LEGACY_SIZE and isinstance(own.model, BPE):
        shrink(content, LEGACY_SIZE)
        tokenizers[f"cut to {LEGACY_SIZE:,}"] = Tokenizer.from_str(json.dumps(content))
    for tokenizer in tokenizers.values():
        tokenizer.encode_special_tokens = True  # a literal "[MASK]" is text here
    short = [Path(name).name for name in peers]
    names = short if len(set(short)) == len(short) else peers
    tokenizers |= dict(zip(names, (peer.backend_tokenizer for peer in peers.values()), strict=True))
    report = measure(tokenizers, documents)
    print(as_markdown(report))
    sizes = [tokenizer.get_vocab_size() for tokenizer in tokenizers.values()]
    shares = [f"{embedding_share(size):.1%} ({size:,} entries)" for size in sorted(set(sizes))]
    print(f"\nShare of the paper's model that the embedding takes: {', '.join(shares)}.")
