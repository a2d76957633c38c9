"""Tokenizer of Chinese ModernBERT: 32,000 BPE entries over characters, with byte fallback.

It normalises nothing, so `decode(encode(text)) == text` and offsets point into the given text.
"""

from transformers import PreTrainedTokenizerFast


class ChineseModernBertTokenizer(PreTrainedTokenizerFast):
    """Frames a text as `[CLS] text [SEP]`, a pair as `[CLS] a [SEP] b [SEP]`.

    A literal "[MASK]" (or another special token) in a text becomes that token, as pipelines
    expect; `split_special_tokens=True` treats it as ordinary text.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        *args,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        **kwargs,
    ):
        # How a folder was found is no property of the tokenizer, yet it would be saved with it.
        for key in ("is_local", "local_files_only"):
            kwargs.pop(key, None)
        super().__init__(
            *args,
            pad_token=pad_token,
            unk_token=unk_token,
            cls_token=cls_token,
            sep_token=sep_token,
            mask_token=mask_token,
            model_max_length=model_max_length,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )


ChineseModernBertTokenizer.register_for_auto_class("AutoTokenizer")
