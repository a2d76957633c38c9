"""Tokenizer of Chinese ModernBERT: 32,000 BPE entries over characters, with byte fallback.

It normalizes nothing, so `decode(encode(text)) == text` and offsets point into the given text.
"""

import functools
import re
from collections.abc import Callable

import numpy as np
from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_MISSING = "word segmentation needs {}: pip install rjieba opencc"


@functools.cache
def _simplified_characters() -> np.ndarray:
    """(0x110000,) uint32: each code point, or the simplified one that OpenCC has for it alone."""
    try:
        import opencc
    except ImportError as error:
        raise ImportError(_MISSING.format("opencc")) from error
    table = np.arange(0x110000, dtype="<u4")
    han = "".join(
        chr(code)
        for first, last in ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
        for code in range(first, last + 1)
    )
    # One on each line: a phrase of OpenCC's would otherwise match across neighbors.
    simplified = opencc.OpenCC("t2s").convert("\n".join(han)).split("\n")
    for character, other in zip(han, simplified, strict=True):
        if len(other) == 1:
            table[ord(character)] = ord(other)
    return table


def simplify(text: str) -> str:
    """Traditional characters become simplified ones, one for one: the length stays.

    For segmenters, which know simplified Chinese only: the borders they find fit the original.

    Raises:
        ImportError: if opencc is not installed.
        ValueError: if the text holds an unpaired surrogate.
    """
    try:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds an unpaired surrogate at {error.start}.") from error
    return _simplified_characters()[codes].tobytes().decode("utf-32-le")


def word_ends(text: str, cut: Callable[[str], list[str]] | None = None) -> np.ndarray:
    """(words,) int64: the offsets, in characters, at which the words of a text end.

    Args:
        cut: cuts simplified text into words that join to it again; None for rjieba's own words.

    Raises:
        ImportError: if rjieba or opencc is not installed.
        ValueError: if the text holds an unpaired surrogate.
    """
    if cut is None:
        try:
            from rjieba import cut
        except ImportError as error:
            raise ImportError(_MISSING.format("rjieba")) from error
    words = cut(simplify(text))
    ends = np.fromiter(map(len, words), dtype=np.int64, count=len(words)).cumsum()
    if (ends[-1] if len(ends) else 0) != len(text):
        raise ValueError("the segmenter lost characters of the text; please report this text.")
    return ends


class ChineseModernBertTokenizer(PreTrainedTokenizerFast):
    """Frames a text as `[CLS] text [SEP]`, a pair as `[CLS] a [SEP] b [SEP]`.

    A literal "[MASK]" (or another special token) in a text becomes that token, as pipelines
    expect; `split_special_tokens=True` treats it as ordinary text.

    Everything is defined in tokenizer.json and tokenizer_config.json. There is no `__init__` on
    purpose: with one, transformers would rebuild the tokenizer from its vocabulary alone, which
    loses the byte fallback and adds "<s>" and "</s>".
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens to text.

        Bytes that do not spell a character become "\ufffd" and leave the characters beside them
        whole. (The tokenizers library gives up on every byte of a run that holds a wrong one.)
        """
        text = super().convert_tokens_to_string(tokens)
        if "\ufffd" not in text:
            return text
        pieces = (
            bytes([int(token[1:-1], 16)]) if _BYTE_TOKEN.fullmatch(token) else token.encode()
            for token in tokens
        )
        return b"".join(pieces).decode(errors="replace")

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if "\ufffd" not in text:
            return text
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        # None: an id that is in no vocabulary, which tokenizers leaves out, too.
        return self.convert_tokens_to_string([token for token in tokens if token is not None])

    def train_new_from_iterator(self, *args, **kwargs):
        """Refuses: transformers would train a tokenizer without the 256 byte tokens.

        Raises:
            NotImplementedError: always; it names the command that trains such a tokenizer.
        """
        raise NotImplementedError(
            "train_new_from_iterator would lose the byte fallback: characters that are not in the "
            "new vocabulary would become [UNK]. Train a tokenizer with "
            "`python -m pretraining.train_tokenizer` of this repository instead."
        )

    def _eventual_warn_about_too_long_sequence(self, *args, **kwargs) -> None:
        # transformers warns of indexing errors where a text is longer than `model_max_length`. This
        # model has no table of positions to index: longer inputs work.
        pass

    def segment(self, text: str) -> list[tuple[str, int, int]]:
        """The words of a text, as rjieba cuts it: (word, start, end) in characters.

        The spans follow each other without a gap and compare with `offset_mapping`. Traditional
        text is cut like simplified text.

        Raises:
            ImportError: if rjieba or opencc is not installed.
            ValueError: if the text holds an unpaired surrogate.
        """
        ends = word_ends(text).tolist()
        return [(text[start:end], start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def save_pretrained(self, *args, **kwargs):
        # These say how this tokenizer was loaded; transformers would save them with it. They stay
        # here, since `datasets` takes a tokenizer that has changed for another one.
        before = dict(self.init_kwargs)
        for key in ("is_local", "local_files_only"):
            self.init_kwargs.pop(key, None)
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.init_kwargs = before


ChineseModernBertTokenizer.register_for_auto_class("AutoTokenizer")
