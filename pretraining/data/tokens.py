"""What a tokenizer's entries are: their names, the characters they stand for, a checksum of all."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from pretraining.files import read_json, read_text

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What spells a character outside the vocabulary, by the value of the byte.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_BYTES = {token: byte for byte, token in enumerate(BYTE_TOKENS)}


def open_tokenizer(tokenizer_file: Path) -> Tokenizer:
    """Opens a tokenizer.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    content = _read(read_text, tokenizer_file)
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the tokenizers library has no type for it
        raise ValueError(f"{tokenizer_file}: not a tokenizer: {error}") from error


def tokenizer_sha256(tokenizer_file: Path) -> str:
    """Hexadecimal SHA-256 of what a tokenizer.json says of ids and words.

    It is not that of the file's bytes: transformers saves the same tokenizer in another layout, and
    with it how the last batch was truncated and padded.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a JSON file.
    """
    content = _read(read_json, tokenizer_file) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(read: Callable, tokenizer_file: Path):
    try:
        return read(tokenizer_file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{tokenizer_file}: no such tokenizer; give the folder that holds it."
        ) from None


def is_wordpiece(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is one of BERT's kind.

    It drops blanks, changes characters (`É` to `e`) and has one [UNK] for all that it does not
    know, so a text cannot be read off its tokens.
    """
    return isinstance(tokenizer.model, WordPiece)


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of the special tokens; a user's added tokens stand for text."""
    added = tokenizer.get_added_tokens_decoder()
    return {index for index, token in added.items() if token.special}


def token_spellings(tokenizer: Tokenizer) -> list[str]:
    """The text of each id, without the prefix that WordPiece writes before later tokens of a word.

    The first byte of a character outside the vocabulary becomes an unpaired surrogate, as in
    Python's `surrogateescape`. Further bytes and special tokens are empty.
    """
    prefix = tokenizer.model.continuing_subword_prefix if is_wordpiece(tokenizer) else ""
    special = _special_ids(tokenizer)
    spellings = [""] * tokenizer.get_vocab_size()
    for token, index in tokenizer.get_vocab().items():
        byte = _BYTES.get(token)
        if index in special or (byte is not None and 0x80 <= byte < 0xC0):
            continue
        spellings[index] = (
            token.removeprefix(prefix)
            if byte is None
            else bytes([byte]).decode("utf-8", "surrogateescape")
        )
    return spellings


def token_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(vocab_size,) int64: the number of characters that each id stands for.

    A character outside the vocabulary becomes one token a byte: the first counts for the
    character, the others count as nothing, as special tokens do.
    """
    return np.array([len(text) for text in token_spellings(tokenizer)], dtype=np.int64)


def first_ordinary_id(tokenizer: Tokenizer) -> int:
    """The first id that stands for text of its own: special, reserved and byte tokens lie below.

    Special tokens that a user has added to a WordPiece may lie above.

    Raises:
        ValueError: if the tokenizer has no byte tokens, unless it is a WordPiece with [UNK]; or if
            nothing follows its special tokens.
    """
    last = tokenizer.token_to_id(BYTE_TOKENS[-1])
    if is_wordpiece(tokenizer):
        ids = map(tokenizer.token_to_id, (PAD, UNKNOWN, CLS, SEP, MASK))
        last = max(_special_ids(tokenizer).intersection(ids), default=None)
    if last is None:
        raise ValueError(
            f"the tokenizer has no token {BYTE_TOKENS[-1]}, so no byte fallback; train one with "
            "python -m pretraining.train_tokenizer."
        )
    if last + 1 == tokenizer.get_vocab_size():
        raise ValueError(
            "its special tokens are the last entries; they have to come first, since random words "
            "are drawn from the entries after them."
        )
    return last + 1


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the special tokens that rows and masks are made of.

    Raises:
        ValueError: if one of the tokens is missing.
    """
    names = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "mask_id": MASK}
    ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    if missing := [names[name] for name, index in ids.items() if index is None]:
        raise ValueError(f"the special tokens {missing} are missing.")
    return ids
