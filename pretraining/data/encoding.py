"""Text -> uint16 tokens with word-start bits, and what a tokenizer tells of such rows."""

import hashlib
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_collator_wwm import WORD_START
from pretraining.data.rows import (
    MAX_VOCAB_SIZE,
    Rows,
    RowsError,
    open_rows,
    read_manifest,
)
from pretraining.data.words import Segmenter


def token_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(vocab_size,) int64 characters that each id stands for.

    A character outside the vocabulary becomes one token a byte: the first counts for the
    character, the others for nothing. Special tokens count as nothing.
    """
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    special = tokenizer.get_added_tokens_decoder()
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if len(token) == 6 and token.startswith("<0x"):
            continuation = 0x80 <= int(token[3:5], 16) < 0xC0
            lengths[index] = 0 if continuation else 1
        else:
            lengths[index] = len(token)
    return lengths


def tokenizer_sha256(tokenizer_file: Path) -> str:
    """Hexadecimal SHA-256 of what a tokenizer.json says of ids and words.

    Not of its bytes: saved again by transformers, it is laid out in another way, and keeps how the
    last batch was cut and padded.

    Raises:
        ValueError: if it is not a JSON file.
    """
    try:
        content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{tokenizer_file}: not a JSON file: {error}") from error
    content |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_ordinary_id(tokenizer: Tokenizer) -> int:
    """The first id that stands for text of its own: special, reserved and byte tokens lie below."""
    return tokenizer.token_to_id("<0xFF>") + 1


class Encoder:
    """Encodes texts for row files.

    Args:
        tokenizer_file: the tokenizer.json.
        dictionary: words for the segmenter beside its own, see `Segmenter`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its ids need more than 15 bits.
    """

    def __init__(self, tokenizer_file: Path, dictionary: Path | None = None):
        if not tokenizer_file.exists():
            raise FileNotFoundError(f"{tokenizer_file}: no such tokenizer.")
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # A literal "[MASK]" in a corpus is text, not a mask.
        self.tokenizer.encode_special_tokens = True
        # Saved by transformers, a tokenizer keeps how its last batch was cut and padded.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.tokenizer.get_vocab_size() > MAX_VOCAB_SIZE:
            raise ValueError(
                f"{tokenizer_file}: {self.tokenizer.get_vocab_size()} entries; row files hold ids "
                f"of 15 bits, so at most {MAX_VOCAB_SIZE}."
            )
        self.lengths = token_lengths(self.tokenizer)
        self.segmenter = Segmenter(dictionary)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """A (tokens,) uint16 array for each text; a token has the bit iff a word starts with it.

        Raises:
            ValueError: if a text holds half a surrogate pair.
        """
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._mark(*pair) for pair in zip(texts, encodings, strict=True)]

    def _mark(self, text: str, encoding) -> np.ndarray:
        ids = np.array(encoding.ids, dtype=np.uint16)
        lengths = self.lengths[ids]
        starts = lengths.cumsum() - lengths
        begins = np.zeros(len(text) + 1, dtype=bool)
        begins[self.segmenter.word_starts(text)] = True
        # The later bytes of a character lie, by this count, where the next one starts.
        return ids | np.where(begins[starts] & (lengths > 0), WORD_START, np.uint16(0))


def check_tokenizer(name: str, manifest: dict, tokenizer_file: Path) -> None:
    """Whether rows were made with a tokenizer.

    Args:
        name: the folder or key that the message names.
        manifest: that of the rows.

    Raises:
        RowsError: if they were made with another.
        ValueError: if the tokenizer is damaged.
    """
    if manifest.get("tokenizer_sha256") != tokenizer_sha256(tokenizer_file):
        raise RowsError(
            f"{name}: its rows were made with another tokenizer than {tokenizer_file}; give the "
            "folder of theirs, or prepare them again with this one."
        )


def open_with_tokenizer(folder: Path, tokenizer_file: Path) -> tuple[Rows, Tokenizer]:
    """A row set and the tokenizer it was made with.

    Raises:
        OSError, ValueError: if one of them cannot be used, or they do not belong together. Shards,
            which take long, are checked last.
    """
    manifest = read_manifest(folder)
    if not tokenizer_file.exists():
        raise FileNotFoundError(f"{tokenizer_file}: no such tokenizer; give its folder.")
    check_tokenizer(str(folder), manifest, tokenizer_file)
    return open_rows(folder), Tokenizer.from_file(str(tokenizer_file))
