"""Text -> uint16 tokens with word-start bits; rows and the tokenizer that they were made with."""

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
from pretraining.data.tokens import (
    is_wordpiece,
    open_tokenizer,
    token_lengths,
    tokenizer_sha256,
)
from pretraining.data.words import Segmenter


class Encoder:
    """Encodes texts for row files.

    Args:
        tokenizer_file: the tokenizer.json.
        dictionary: the user's words for the segmenter, see `Segmenter`.

    Raises:
        ImportError: if rjieba is not installed.
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if it is damaged or its ids need more than 15 bits, or if the dictionary cannot
            be read.
    """

    def __init__(self, tokenizer_file: Path, dictionary: Path | None = None):
        self.tokenizer = open_tokenizer(tokenizer_file)
        # A literal "[MASK]" in a corpus is text, not a mask.
        self.tokenizer.encode_special_tokens = True
        # Saved by transformers, a tokenizer keeps how its last batch was truncated and padded.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.tokenizer.get_vocab_size() > MAX_VOCAB_SIZE:
            raise ValueError(
                f"{tokenizer_file}: {self.tokenizer.get_vocab_size()} entries; row files hold ids "
                f"of 15 bits, so at most {MAX_VOCAB_SIZE}."
            )
        added = self.tokenizer.get_added_tokens_decoder().values()
        # Such tokens of a user take blanks along, which their spelling does not have.
        with_blanks = any((each.lstrip or each.rstrip) and not each.special for each in added)
        self.by_offsets = with_blanks or is_wordpiece(self.tokenizer)
        self.lengths = token_lengths(self.tokenizer)
        self.segmenter = Segmenter(dictionary)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """A (tokens,) uint16 array for each text; a token has the bit if a word starts with it.

        Raises:
            ValueError: if a text holds an unpaired surrogate.
        """
        if self.by_offsets:
            mark, encode = self._mark_by_offsets, self.tokenizer.encode_batch
        else:
            mark, encode = self._mark, self.tokenizer.encode_batch_fast  # without offsets
        # First, since it says what is wrong with a text; tokenizers says that it is no text.
        words = [self.segmenter.word_starts(text) for text in texts]
        encodings = encode(texts, add_special_tokens=False)
        return [mark(*each) for each in zip(texts, words, encodings, strict=True)]

    def _mark(self, text: str, words: np.ndarray, encoding) -> np.ndarray:
        ids = np.array(encoding.ids, dtype=np.uint16)
        lengths = self.lengths[ids]
        starts = lengths.cumsum() - lengths
        begins = np.zeros(len(text) + 1, dtype=bool)
        begins[words] = True
        # The later bytes of a character lie, by this count, where the next one starts.
        return ids | np.where(begins[starts] & (lengths > 0), WORD_START, np.uint16(0))

    def _mark_by_offsets(self, text: str, words: np.ndarray, encoding) -> np.ndarray:
        """As `_mark`, for tokens whose lengths do not add up to the text.

        A word also starts with a token if it began in what was dropped before it.
        """
        ids = np.array(encoding.ids, dtype=np.uint16)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        before = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
        # Tokens of one character, such as the parts of a Korean syllable, share its offsets.
        begun = words.searchsorted(starts, side="right") > words.searchsorted(before)
        return ids | np.where(begun, WORD_START, np.uint16(0))


def check_tokenizer(name: str, manifest: dict, tokenizer_file: Path) -> None:
    """Checks that rows were made with a tokenizer.

    Args:
        name: the folder or key that the message names.
        manifest: that of the rows.

    Raises:
        RowsError: if they were made with another one.
        OSError, ValueError: if the tokenizer cannot be read.
    """
    if manifest.get("tokenizer_sha256") != tokenizer_sha256(tokenizer_file):
        raise RowsError(
            f"{name}: its rows were made with another tokenizer than {tokenizer_file}; give the "
            "folder of that tokenizer, or prepare the rows again with this one."
        )


def open_with_tokenizer(folder: str | Path, tokenizer_file: Path) -> tuple[Rows, Tokenizer]:
    """A row set and the tokenizer it was made with.

    Raises:
        OSError, ValueError: if one of them cannot be used, or they do not belong together. Shards,
            which take long, are checked last.
    """
    manifest = read_manifest(folder)
    check_tokenizer(str(folder), manifest, tokenizer_file)
    return open_rows(folder), open_tokenizer(tokenizer_file)
