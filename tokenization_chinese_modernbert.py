"""Tokenizer of Chinese ModernBERT: 32,000 BPE entries over characters, with byte fallback.

It normalises nothing, so `decode(encode(text)) == text` and offsets point into the given text.
"""

from transformers import PreTrainedTokenizerFast


class ChineseModernBertTokenizer(PreTrainedTokenizerFast):
    """Frames a text as `[CLS] text [SEP]`, a pair as `[CLS] a [SEP] b [SEP]`.

    A literal "[MASK]" (or another special token) in a text becomes that token, as pipelines
    expect; `split_special_tokens=True` treats it as ordinary text.

    All of it is in tokenizer.json and tokenizer_config.json. There is no `__init__` on purpose:
    transformers would take it for a reason to rebuild the tokenizer from its vocabulary alone,
    losing the byte fallback and adding "<s>" and "</s>".
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def save_pretrained(self, *args, **kwargs):
        # How a folder was found is no property of the tokenizer, yet it would be saved with it.
        for key in ("is_local", "local_files_only"):
            self.init_kwargs.pop(key, None)
        return super().save_pretrained(*args, **kwargs)


ChineseModernBertTokenizer.register_for_auto_class("AutoTokenizer")
