"""What a model folder holds: its head, its outputs, its tokenizer, and the model itself in torch.

A folder with `modules.json`, as sentence-transformers writes it, is an embedding model: it gives a
vector for each text beside the states of the tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.files import read_json

# End of the class's name -> the Auto class that opens it, and the names of its outputs.
HEADS = {
    "Model": ("AutoModel", ("last_hidden_state",)),
    "ForMaskedLM": ("AutoModelForMaskedLM", ("logits",)),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", ("logits",)),
    "ForTokenClassification": ("AutoModelForTokenClassification", ("logits",)),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", ("logits",)),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
}
_PREFIX = "ChineseModernBert"
# Keys that are read here and that a config.json may leave out.
_WITH_DEFAULT = ("max_position_embeddings", "pad_token_id", "mask_token_id", "vocab_size")
EMBEDDING_OUTPUTS = ("token_embeddings", "sentence_embedding")
# The modules of sentence-transformers that a folder may name.
_ARRANGEMENTS = [
    ["Transformer", *before, "Pooling", *linear, *normalize]
    for before in ([], ["Dense"], ["WordVectors"])
    for linear in ([], ["Dense"])
    for normalize in ([], ["Normalize"])
]


@dataclass(frozen=True)
class Pooling:
    """How an embedding model makes a vector of a text.

    Attributes:
        mode: "mean" or "cls".
        normalized: whether the vector gets length 1.
        dense: folder of a dense layer with GELU for the tokens' states before; None without one.
        words: folder of the layer with words beside the states, in its place; None without one.
        linear: folder of a linear layer for the pooled vector; None without one.
    """

    mode: str
    normalized: bool
    dense: Path | None = None
    words: Path | None = None
    linear: Path | None = None

    @property
    def inside(self) -> Path | None:
        """Folder of what changes the tokens' states before the pooling."""
        return self.dense or self.words


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, read but not loaded.

    Attributes:
        path: the folder.
        config: content of its config.json; what is read here and left out there has its default.
        head: end of the class's name, of `HEADS`.
        pooling: of an embedding model, else None.
        longest_text: tokens at which a text is cut: the context, or less where the folder says so.
    """

    path: Path
    config: dict
    head: str
    pooling: Pooling | None
    longest_text: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the model gives."""
        return EMBEDDING_OUTPUTS if self.pooling else HEADS[self.head][1]

    def is_of_tokens(self, output: str) -> bool:
        """Whether an output has an entry for each token, not one for each text."""
        if self.pooling:
            return output == EMBEDDING_OUTPUTS[0]
        return self.head not in ("ForSequenceClassification", "ForMultipleChoice")

    @property
    def max_tokens(self) -> int:
        """The longest input that the model is made for."""
        return self.config["max_position_embeddings"]

    @property
    def pad_id(self) -> int:
        """The id of padding; any will do where the configuration names none."""
        return self.config.get("pad_token_id") or 0

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; it cuts off what is longer than `longest_text`.

        Raises:
            ValueError: if its file is damaged.
        """
        file = self.path / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no other
            raise ValueError(f"{file} is no file of a tokenizer: {error}") from error
        tokenizer.no_padding()
        settings = _read_if_there(self.path / "tokenizer_config.json")
        tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
        side = settings.get("truncation_side") or "right"
        tokenizer.enable_truncation(self.longest_text, direction=side)
        return tokenizer

    def load(self, dtype: torch.dtype = torch.float32, attention: str | None = None) -> nn.Module:
        """The model in torch, in eval mode; it takes input_ids and attention_mask.

        Args:
            dtype: of its weights.
            attention: the backend, None for the fastest.

        Raises:
            OSError: if the weights are missing, some of them too, or do not fit.
        """
        opened = "AutoModel" if self.pooling else HEADS[self.head][0]
        try:
            model, found = getattr(transformers, opened).from_pretrained(
                self.path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise OSError(
                f"{self.path}: its weights do not fit its config.json: {error}"
            ) from error
        if missing := sorted(found["missing_keys"]):
            raise OSError(
                f"{self.path}: its weights lack {', '.join(missing[:3])} ({len(missing)} in all), "
                f"which a {self.head} has."
            )
        # A folder keeps with what further outputs its model was opened before it was saved.
        model.config.output_hidden_states = model.config.output_attentions = False
        model.config.return_dict = True
        return (EmbeddingModel(model, self.pooling) if self.pooling else model).eval()


class EmbeddingModel(nn.Module):
    """An encoder, perhaps a layer over its states, their pooling, and perhaps a linear layer."""

    def __init__(self, encoder: nn.Module, pooling: Pooling):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dense = self.words = self.linear = None
        if pooling.dense:
            self.dense = nn.Sequential(_read_linear(pooling.dense), nn.GELU()).to(encoder.dtype)
        if pooling.words:
            self.words = _Words(pooling.words).to(encoder.dtype)
        if pooling.linear:
            self.linear = _read_linear(pooling.linear).to(encoder.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(batch, sequence) twice -> `token_embeddings` and `sentence_embedding` (batch, size)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.dense is not None:
            # Two dimensions, as all other layers of an export have them.
            states = self.dense(states.flatten(0, 1)).unflatten(0, input_ids.shape)
        elif self.words is not None:
            states = self.words(input_ids.flatten(), states.flatten(0, 1))
            states = states.unflatten(0, input_ids.shape)
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        if self.pooling.mode == "cls":
            weight = weight * (weight.cumsum(1) == 1)  # the first token alone
        vector = (states * weight).sum(1) / weight.sum(1)
        if self.linear is not None:
            vector = self.linear(vector)
        if self.pooling.normalized:
            vector = nn.functional.normalize(vector, dim=-1)
        return dict(zip(EMBEDDING_OUTPUTS, (states, vector), strict=True))


def open_model_folder(path: Path) -> ModelFolder:
    """Reads what a folder holds.

    Raises:
        OSError, ValueError: if it is no folder of this model; the message says what is missing.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path} is no model folder: it has no {name}.")
    config = read_json(path / "config.json")
    if config.get("model_type") != "chinese_modernbert":
        raise ValueError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, not "
            "'chinese_modernbert'. `python -m serving.convert_modernbert` converts a ModernBERT of "
            "transformers."
        )
    (architecture, *_) = config.get("architectures") or [""]
    head = architecture.removeprefix(_PREFIX)
    if head not in HEADS:
        raise ValueError(
            f"{path / 'config.json'}: architectures is {config.get('architectures')}; expected one "
            f"of {', '.join(_PREFIX + name for name in HEADS)}."
        )
    defaults = ChineseModernBertConfig().to_dict()
    config = {key: defaults[key] for key in _WITH_DEFAULT} | config
    return ModelFolder(path, config, head, _read_pooling(path), _longest_text(path, config))


def _read_if_there(file: Path) -> dict:
    return read_json(file) if file.is_file() else {}


def _longest_text(path: Path, config: dict) -> int:
    """Tokens at which sentence-transformers or transformers cut a text."""
    own = _read_if_there(path / "sentence_bert_config.json").get("max_seq_length")
    own = own or _read_if_there(path / "tokenizer_config.json").get("model_max_length")
    context = config["max_position_embeddings"]
    return min(own or context, context)


def _read_pooling(path: Path) -> Pooling | None:
    """The pooling of an embedding model, None for other models.

    Raises:
        ValueError: if its modules do something else, or its texts are changed before they are read.
    """
    if not (path / "modules.json").is_file():
        return None
    _check_texts(path)
    modules = [(m["type"].rsplit(".", 1)[-1], m["path"]) for m in read_json(path / "modules.json")]
    kinds = [kind for kind, _ in modules]
    if kinds == ["Transformer"]:  # a CrossEncoder: the head says all
        return None
    if kinds not in _ARRANGEMENTS:
        raise ValueError(
            f"{path / 'modules.json'}: the modules are {', '.join(kinds)}; Transformer, Pooling, "
            "and perhaps Dense or WordVectors before it, and Dense and Normalize behind it are "
            "supported."
        )
    at = kinds.index("Pooling")
    file = path / modules[at][1] / "config.json"
    mode = _pooling_mode(read_json(file))
    if mode not in ("mean", "cls"):
        raise ValueError(f"{file}: the pooling is {mode!r}; 'mean' and 'cls' are supported.")
    before = {kind: path / folder for kind, folder in modules[:at]}
    behind = {kind: path / folder for kind, folder in modules[at:]}
    dense, words, linear = before.get("Dense"), before.get("WordVectors"), behind.get("Dense")
    if dense:
        _check_dense(dense / "config.json", "activation.GELU", EMBEDDING_OUTPUTS[0])
    if linear:
        _check_dense(linear / "config.json", "linear.Identity", EMBEDDING_OUTPUTS[1])
    if normalize := behind.get("Normalize"):
        _check_names(normalize / "config.json", EMBEDDING_OUTPUTS[1])
    return Pooling(mode, "Normalize" in kinds, dense, words, linear)


def _pooling_mode(config: dict) -> str:
    """The pooling that a module's configuration names, in today's form or the older one."""
    if "pooling_mode" in config:
        return config["pooling_mode"]
    older = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    return " and ".join(older.get(key, key) for key in chosen) or "mean"


def _check_texts(path: Path) -> None:
    """Refuses a model whose texts sentence-transformers changes before the tokenizer sees them.

    Raises:
        ValueError: naming the setting and what to do.
    """
    file = path / "config_sentence_transformers.json"
    prompts = _read_if_there(file).get("prompts") or {}
    if used := {name: prompt for name, prompt in prompts.items() if prompt}:
        raise ValueError(
            f"{file}: the model puts prompts before its texts ({used}), which exports and the page "
            "do not. Export a copy with empty prompts, and put them before the texts yourself."
        )
    file = path / "sentence_bert_config.json"
    settings = _read_if_there(file)
    for key in ("do_lower_case", "processing_kwargs"):
        if settings.get(key):
            raise ValueError(
                f"{file}: {key} is {settings[key]!r}, by which exports and the page do not go. "
                "Export a copy without it, and prepare the texts in that way yourself."
            )


def _check_dense(file: Path, activation: str, output: str) -> None:
    """Refuses a dense layer that has another activation, or another input or output.

    Raises:
        ValueError: if it is another.
    """
    config = read_json(file)
    wanted, given = f"torch.nn.modules.{activation}", config.get("activation_function")
    if given != wanted:
        raise ValueError(f"{file}: activation_function is {given!r}; {wanted!r} is supported.")
    if config.get("use_residual"):
        raise ValueError(f"{file}: use_residual is true; a dense layer without it is supported.")
    _check_names(file, output)


def _check_names(file: Path, output: str) -> None:
    """Refuses a module that changes something else than `output`; a missing file has defaults.

    Raises:
        ValueError: if it does.
    """
    config = _read_if_there(file)
    read = config.get("module_input_name") or EMBEDDING_OUTPUTS[1]
    written = config.get("module_output_name") or read
    for key, name in (("module_input_name", read), ("module_output_name", written)):
        if name != output:
            raise ValueError(f"{file}: {key} is {name!r}; {output!r} is supported.")


class _Words(nn.Module):
    """The graph of `WordVectors`, without sentence-transformers."""

    def __init__(self, folder: Path):
        super().__init__()
        weights = load_file(folder / "model.safetensors")
        self.table = nn.Embedding.from_pretrained(weights["table.weight"])
        self.codes, self.states = _linear(weights, "codes"), _linear(weights, "states")

    def forward(self, input_ids: Tensor, states: Tensor) -> Tensor:
        codes = nn.functional.gelu(self.codes(self.table(input_ids)))
        return torch.cat([codes, self.states(states)], dim=-1)


def _read_linear(folder: Path) -> nn.Linear:
    """The weights of a dense layer that sentence-transformers wrote."""
    return _linear(load_file(folder / "model.safetensors"), "linear")


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    size, hidden = weights[f"{name}.weight"].shape
    linear = nn.Linear(hidden, size, bias=f"{name}.bias" in weights)
    own = {key: each for key, each in weights.items() if key.startswith(f"{name}.")}
    linear.load_state_dict({key.removeprefix(f"{name}."): each for key, each in own.items()})
    return linear
