"""Configuration of Chinese ModernBERT. The defaults are the paper's 377 M parameter model.

Names follow transformers' own ModernBERT, whose checkpoints it can describe as well. Misspelled
keys and contradictory values are refused, because a misspelled key that is silently ignored costs a
whole pretraining run.
"""

import copy
import difflib
import inspect
from dataclasses import fields

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

GLOBAL_ROPE_THETA = 80_000.0
LOCAL_ROPE_THETA = 10_000.0

# rope_type -> the entries it takes besides rope_type and rope_theta.
ROPE_ENTRIES = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}

# Written to every saved config.json, so that the Auto classes find this code; the tokenizer has an
# entry of its own in tokenizer_config.json.
AUTO_MAP = {
    "AutoConfig": "configuration_chinese_modernbert.ChineseModernBertConfig",
    "AutoModel": "modeling_chinese_modernbert.ChineseModernBertModel",
    "AutoModelForMaskedLM": "modeling_chinese_modernbert.ChineseModernBertForMaskedLM",
    "AutoModelForSequenceClassification": (
        "modeling_chinese_modernbert.ChineseModernBertForSequenceClassification"
    ),
    "AutoModelForTokenClassification": (
        "modeling_chinese_modernbert.ChineseModernBertForTokenClassification"
    ),
    "AutoModelForQuestionAnswering": (
        "modeling_chinese_modernbert.ChineseModernBertForQuestionAnswering"
    ),
    "AutoModelForMultipleChoice": "modeling_chinese_modernbert.ChineseModernBertForMultipleChoice",
}

# Task -> what `pipeline()` loads for it, as `custom_pipelines` has it. "ner" is another name of
# token classification, which transformers would not look up here.
PIPELINES = {
    "question-answering": {
        "impl": "question_answering_chinese_modernbert.ChineseModernBertQuestionAnsweringPipeline",
        "pt": ["AutoModelForQuestionAnswering"],
    }
} | {
    task: {
        "impl": (
            "token_classification_chinese_modernbert.ChineseModernBertTokenClassificationPipeline"
        ),
        "pt": ["AutoModelForTokenClassification"],
    }
    for task in ("token-classification", "ner")
}

# Not fields of this class, but valid as a keyword and in a saved config.json.
_ACCEPTED_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "global_attn_every_n_layers",
    "global_rope_theta",
    "local_rope_theta",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "use_cache",  # Trainer writes it into every model's configuration
}

# Keys that would change the model and that it cannot follow -> what to do instead.
_UNSUPPORTED_KEYS = {
    "partial_rotary_factor": "all dimensions of a head are rotated. Delete it.",
    "per_layer_config": "all layers have the same shape. Delete it.",
    "rope_scaling": "put the scaling into rope_parameters['full_attention'].",
    "rope_theta": "global and local layers have one each: global_rope_theta and local_rope_theta.",
}

# Under this keyword `from_dict` passes the unknown keys of a file on to the constructor.
_FROM_FILE = "_unknown_keys_from_file"


# Key -> the kind of layer whose base of RoPE it sets.
_THETAS = {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"}


def _overridden(content: dict, given: dict) -> dict:
    """The content of a file with values of `from_pretrained` in the place of its own.

    What the file derived from a value that is replaced follows it: fewer layers keep the first
    entries of `layer_types`, and RoPE's bases stay where only a scaling is given.
    """
    content = dict(content)
    rope = {kind: dict(entry) for kind, entry in (content.get("rope_parameters") or {}).items()}
    for key, kind in _THETAS.items():
        if content.get(key) is not None and "rope_theta" not in rope.get(kind, {}):
            rope[kind] = {**rope.get(kind, {}), "rope_theta": content.pop(key)}
    for kind, entry in (given.pop("rope_parameters", None) or {}).items():
        theta = rope.get(kind, {}).get("rope_theta")
        rope[kind] = entry if theta is None else {"rope_theta": theta, **entry}
    for key, kind in _THETAS.items():
        if key in given:
            rope[kind] = {**rope.get(kind, {}), "rope_theta": given.pop(key)}
    if rope:
        content["rope_parameters"] = rope
    if "global_attn_every_n_layers" in given:
        content.pop("layer_types", None)
    elif given.get("layer_types"):
        content.pop("global_attn_every_n_layers", None)
    elif content.get("layer_types") and (layers := given.get("num_hidden_layers")) is not None:
        content["layer_types"] = content["layer_types"][:layers]
    return content | given


def _is_misspelling(key: str, name: str) -> bool:
    """Whether an unknown key is a misspelling of a known name; the class states the rule."""
    words, meant = key.lower().replace("-", "_").split("_"), name.split("_")
    if "".join(words) == "".join(meant):
        return True
    return (
        len(name) >= 8  # `type` is no misspelling of `dtype`
        and len(words) == len(meant)
        and all(
            word == right
            or (len(right) >= 4 and difflib.SequenceMatcher(None, word, right).ratio() >= 0.75)
            for word, right in zip(words, meant, strict=True)
        )
    )


class ChineseModernBertConfig(PreTrainedConfig):
    """Shape and hyperparameters of a Chinese ModernBERT encoder.

    Libraries write keys of their own into a saved `config.json`, and old files have keys that
    transformers no longer knows. An unknown key that is read from a file or dictionary
    (`from_pretrained`, `from_json_file`, `from_dict`, `AutoConfig`) is therefore kept as an
    attribute, saved again, and named in one warning; it has no effect. Generation parameters, such
    as `max_length`, are dropped, as transformers drops them from every configuration.

    An unknown key is refused when

    - it is a keyword of the constructor;
    - it is a misspelling of a known name, also in a file and among the keywords of
      `from_pretrained`. A key is a misspelling if it equals the known name without regard to case,
      hyphens and underscores (`hiddenSize`), or if it has as many words and each is almost the
      same word (`max_postion_embedings`): words of four letters and more may differ in about
      every fourth letter (`difflib` ratio of at least 0.75), shorter words not at all, since
      another short word is usually another name (`eot_token_id`). `num_heads`, `max_length` or
      `pruned_heads` are no misspellings of anything;
    - it would change the model in a way that is not supported (`rope_theta`, `rope_scaling`,
      `partial_rotary_factor`, `per_layer_config`), or hide a method or a computed value
      (`head_size`).

    Args:
        vocab_size: entries of the vocabulary; ids must fit in 15 bits to be stored in row files.
        hidden_size: width of the residual stream.
        embedding_size: width of the token embeddings, None for `hidden_size`. Otherwise they are
            factorized, as in ALBERT and ELECTRA: one projection leads from them to the first layer,
            another from the MLM head to the decoder.
        intermediate_size: inner width of the gated feed-forward (GeGLU) block.
        num_hidden_layers, num_attention_heads: depth, and heads per layer. The head size,
            `hidden_size / num_attention_heads`, must be an even whole number (RoPE rotates pairs).
        hidden_activation: gate of the feed-forward block.
        max_position_embeddings: context, in tokens, that the model is made for.
        initializer_range: standard deviation of the (truncated) normal initialization; output
            projections of the blocks are scaled down by `sqrt(2 * num_hidden_layers)`.
        norm_type: `"rmsnorm"`, as in the paper, or `"layernorm"`, as in transformers' ModernBERT.
            Their weights have the same names and shapes, so only this key tells them apart.
        norm_eps: epsilon of every norm.
        norm_bias: whether a LayerNorm has a bias; an RMSNorm has none.
        attention_bias, mlp_bias: whether the projections of attention, and those of the
            feed-forward block, have biases.
        local_attention: window of the local layers, in tokens; a token attends to
            `local_attention / 2` tokens on each side, both ends included.
        layer_types: `"full_attention"` or `"sliding_attention"` for each layer. Left out, every
            `global_attn_every_n_layers`-th layer (default 3), counted from the first, is global.
        rope_parameters: `{"full_attention": {...}, "sliding_attention": {...}}` as transformers
            has it. Left out, it is built from `global_rope_theta` (default 80,000) and
            `local_rope_theta` (default 10,000). To go beyond the context a model was trained for,
            the global layers' entry can scale by a `"factor"`: its `"rope_type"` is then
            `"linear"`, `"dynamic"` (NTK, by each document's own length), or `"yarn"`, which also
            needs `"original_max_position_embeddings"`.
        embedding_dropout, attention_dropout, mlp_dropout: dropout after the embeddings, after
            the attention output projection and inside the feed-forward block. The paper uses none.
        classifier_pooling: how heads that classify a whole document pool its tokens: `"mean"`, or
            `"cls"` for the first token.
        classifier_dropout: dropout before the last projection of every fine-tuning head.
        classifier_bias, classifier_activation: bias and activation of the dense layer that every
            head begins with, the MLM head too; None for `hidden_activation`.
        decoder_bias: whether the MLM head's last projection has a bias.

    Raises:
        ValueError: on an unknown key, or on values that contradict each other; the message names
            the key and how to fix it.

    Source: arXiv 2510.12285, section 3; field names after transformers' ModernBERT.
    """

    model_type = "chinese_modernbert"

    vocab_size: int = 32_000
    hidden_size: int = 1024
    embedding_size: int | None = None
    intermediate_size: int = 2624
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    norm_type: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    local_attention: int = 128
    layer_types: list[str] | None = None
    rope_parameters: dict | None = None
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    classifier_pooling: str = "mean"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str | None = None
    decoder_bias: bool = True
    pad_token_id: int | None = 0
    cls_token_id: int | None = 2
    sep_token_id: int | None = 3
    mask_token_id: int | None = 4
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        from_file = kwargs.pop(_FROM_FILE, {})
        self._refuse_unknown_keys(kwargs)
        self._check_sizes()
        self._check_heads()
        self._check_norm()
        self._check_token_ids()
        every_n = kwargs.pop("global_attn_every_n_layers", None)
        self._resolve_layer_types(every_n)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs, **from_file)
        self._warn_about(from_file)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but unknown keys of `config_dict` are kept (see the class)."""
        for key in kwargs:
            cls._refuse_misspelling(key)
        # Set behind the constructor, these would be neither completed nor checked.
        ours = set(cls.__annotations__) | _THETAS.keys() | {"global_attn_every_n_layers"}
        if keys := kwargs.keys() & ours:
            config_dict = _overridden(config_dict, {key: kwargs.pop(key) for key in keys})
        known = cls._known_keys()
        given, unknown = {}, {}
        for key, value in config_dict.items():
            if key in known or key.startswith("_"):
                given[key] = value
            else:
                cls._refuse_misspelling(key)
                cls._refuse_unsupported(key)
                unknown[key] = value
        if unknown:
            given[_FROM_FILE] = unknown
        return super().from_dict(given, **kwargs)

    @classmethod
    def from_json_file(cls, json_file):
        """As in transformers, but unknown keys of the file are kept (see the class)."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _known_keys(cls) -> set[str]:
        return _ACCEPTED_KEYS | {field.name for field in fields(cls)}

    @classmethod
    def _refuse_misspelling(cls, key: str) -> None:
        known = cls._known_keys()
        if key in known or key.startswith("_"):
            return
        for name in sorted(known):
            if _is_misspelling(key, name):
                raise ValueError(
                    f"ChineseModernBertConfig: unknown key {key!r}. Did you mean {name!r}?"
                )

    @classmethod
    def _refuse_unsupported(cls, key: str) -> None:
        if key in _UNSUPPORTED_KEYS:
            raise ValueError(
                f"ChineseModernBertConfig: {key!r} is not supported: {_UNSUPPORTED_KEYS[key]}"
            )
        # As attributes these would hide a method, or fail for want of a setter.
        there = inspect.getattr_static(cls, key, None)
        read_only = isinstance(there, property) and there.fset is None
        if read_only or callable(getattr(cls, key, None)):
            raise ValueError(
                f"ChineseModernBertConfig: {key!r} is a method or a computed value and cannot be "
                "set. Delete the key."
            )

    def _refuse_unknown_keys(self, kwargs: dict) -> None:
        known = self._known_keys()
        for key in kwargs:
            if key in known or key.startswith("_"):
                continue
            self._refuse_unsupported(key)
            close = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"ChineseModernBertConfig: unknown key {key!r}.{hint}")

    def _warn_about(self, unknown: dict) -> None:
        """Names the unknown keys of a file, once for each set of keys."""
        kept = [key for key in unknown if hasattr(self, key)]
        dropped = [key for key in unknown if not hasattr(self, key)]
        if kept:
            logger.warning_once(
                "ChineseModernBertConfig: unknown keys are kept, but have no effect on the model: "
                f"{', '.join(map(repr, kept))}. If one of them was meant as a setting of the "
                "model, correct its name."
            )
        if dropped:
            logger.warning_once(
                "ChineseModernBertConfig: generation parameters do not belong in a model's "
                f"configuration and are dropped: {', '.join(map(repr, dropped))}."
            )

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "embedding_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "local_attention",
        ):
            value = getattr(self, name)
            if name == "embedding_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"ChineseModernBertConfig: {name} must be a whole number of at least 1, "
                    f"got {value!r}."
                )
        for name in (
            "embedding_dropout",
            "attention_dropout",
            "mlp_dropout",
            "classifier_dropout",
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(
                    f"ChineseModernBertConfig: {name} must lie in [0, 1), got {value!r}."
                )
        if self.local_attention % 2:
            raise ValueError(
                f"ChineseModernBertConfig: local_attention {self.local_attention} must be even, "
                "half of the window lies on each side."
            )

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"ChineseModernBertConfig: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}. Choose a hidden_size of "
                f"{self.num_attention_heads} × an even head size, such as 64."
            )
        if self.head_size % 2:
            raise ValueError(
                f"ChineseModernBertConfig: hidden_size {self.hidden_size} over "
                f"num_attention_heads {self.num_attention_heads} gives the odd head size "
                f"{self.head_size}, but RoPE rotates pairs of dimensions. Choose an even head size."
            )
        if self.classifier_pooling not in ("mean", "cls"):
            raise ValueError(
                "ChineseModernBertConfig: classifier_pooling must be 'mean' or 'cls', got "
                f"{self.classifier_pooling!r}."
            )

    def _check_norm(self) -> None:
        if self.norm_type not in ("rmsnorm", "layernorm"):
            raise ValueError(
                "ChineseModernBertConfig: norm_type must be 'rmsnorm' or 'layernorm', got "
                f"{self.norm_type!r}."
            )
        if self.norm_bias and self.norm_type == "rmsnorm":
            raise ValueError(
                "ChineseModernBertConfig: norm_bias needs norm_type 'layernorm'; an RMSNorm has no "
                "bias. Set the one or leave out the other."
            )

    def _check_token_ids(self) -> None:
        for token in ("pad", "cls", "sep", "mask", "bos", "eos"):
            name = f"{token}_token_id"
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"ChineseModernBertConfig: {name} {value} lies outside the vocabulary of "
                    f"{self.vocab_size} entries."
                )

    def _resolve_layer_types(self, every_n: int | None) -> None:
        if every_n is not None and every_n < 1:
            raise ValueError(
                "ChineseModernBertConfig: global_attn_every_n_layers must be at least 1 "
                f"(1 makes every layer global), got {every_n}."
            )
        derived = [
            "sliding_attention" if layer % (every_n or 3) else "full_attention"
            for layer in range(self.num_hidden_layers)
        ]
        if self.layer_types is None:
            self.layer_types = derived
        elif every_n is not None and self.layer_types != derived:
            raise ValueError(
                f"ChineseModernBertConfig: layer_types contradicts global_attn_every_n_layers "
                f"{every_n}. Give only one of them."
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"ChineseModernBertConfig: layer_types has {len(self.layer_types)} entries for "
                f"num_hidden_layers {self.num_hidden_layers}. Give one entry per layer."
            )
        unknown = set(self.layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(
                f"ChineseModernBertConfig: layer_types holds {sorted(unknown)}; each entry must "
                "be 'full_attention' or 'sliding_attention'."
            )

    def convert_rope_params_to_dict(self, **kwargs):
        """Builds `rope_parameters`, one entry per layer type; called by transformers' base."""
        given = dict(self.rope_parameters or {})
        thetas = {
            "full_attention": kwargs.pop("global_rope_theta", None),
            "sliding_attention": kwargs.pop("local_rope_theta", None),
        }
        defaults = {"full_attention": GLOBAL_ROPE_THETA, "sliding_attention": LOCAL_ROPE_THETA}
        if unknown := set(given) - set(thetas):
            raise ValueError(
                f"ChineseModernBertConfig: rope_parameters has unknown entries {sorted(unknown)}; "
                "it takes 'full_attention' and 'sliding_attention'."
            )
        for layer_type, theta in thetas.items():
            entry = {"rope_type": "default", **(given.get(layer_type) or {})}
            entry.setdefault("rope_theta", theta if theta is not None else defaults[layer_type])
            if theta is not None and entry["rope_theta"] != theta:
                raise ValueError(
                    f"ChineseModernBertConfig: rope_parameters[{layer_type!r}] has rope_theta "
                    f"{entry['rope_theta']}, but {theta} was given as well. Give only one of them."
                )
            self._check_rope_entries(layer_type, entry)
            if not isinstance(entry["rope_theta"], int | float) or not entry["rope_theta"] > 0:
                raise ValueError(
                    f"ChineseModernBertConfig: rope_theta of {layer_type!r} must be positive, "
                    f"got {entry['rope_theta']!r}."
                )
            given[layer_type] = entry
        self.rope_parameters = given
        return kwargs

    def _check_rope_entries(self, layer_type: str, entry: dict) -> None:
        where = f"ChineseModernBertConfig: rope_parameters[{layer_type!r}]"
        rope_type = entry["rope_type"]
        if rope_type not in ROPE_ENTRIES:
            raise ValueError(
                f"{where} has the rope_type {rope_type!r}; it can be {', '.join(ROPE_ENTRIES)}."
            )
        known = {"rope_type", "rope_theta"} | ROPE_ENTRIES[rope_type]
        if unknown := set(entry) - known:
            raise ValueError(
                f"{where} has unknown entries {sorted(unknown)}; with rope_type {rope_type!r} it "
                f"takes {sorted(known)}."
            )
        if rope_type == "default":
            return
        factor = entry.get("factor")
        if not isinstance(factor, int | float) or isinstance(factor, bool) or factor < 1:
            raise ValueError(
                f"{where} needs a factor of at least 1, how many times longer the context becomes, "
                f"got {factor!r}."
            )
        original = entry.get("original_max_position_embeddings")
        if rope_type == "yarn" and (not isinstance(original, int) or original < 1):
            raise ValueError(
                f"{where} needs original_max_position_embeddings, the context in tokens that the "
                f"model was trained for, got {original!r}."
            )

    def set_pipelines(self, *tasks: str) -> None:
        """Names our pipelines for these tasks, and for no others, in `custom_pipelines`.

        A model's configuration may come from a model with another head. Pipelines that somebody
        else registered stay.
        """
        named = {
            task: pipeline
            for task, pipeline in getattr(self, "custom_pipelines", {}).items()
            if pipeline != PIPELINES.get(task)
        } | {task: copy.deepcopy(PIPELINES[task]) for task in tasks}
        if named:
            self.custom_pipelines = named
        elif hasattr(self, "custom_pipelines"):
            del self.custom_pipelines

    def without_pipelines(self) -> "ChineseModernBertConfig":
        """This configuration, or a copy where it names our pipelines, as of another head."""
        named = getattr(self, "custom_pipelines", {}).items()
        if not any(pipeline == PIPELINES.get(task) for task, pipeline in named):
            return self
        copied = copy.deepcopy(self)
        copied.set_pipelines()
        return copied

    @property
    def embedding_width(self) -> int:
        """Dimensions of a token embedding."""
        return self.embedding_size or self.hidden_size

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads


ChineseModernBertConfig.register_for_auto_class()
