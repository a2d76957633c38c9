"""A checkpoint of transformers' ModernBERT: where its files are, and what it is in our terms.

Everything here reads `config.json` and the headers of the weights; no weight is loaded.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import ModernBertConfig

import modeling_chinese_modernbert as modeling
from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.files import read_json

# Every class of transformers' that has weights -> ours.
ARCHITECTURES = {
    f"ModernBert{kind}": getattr(modeling, f"ChineseModernBert{kind}")
    for kind in (
        "Model",
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "ForMultipleChoice",
    )
}

# Keys that change neither an output nor how we train: switches of transformers' kernels and losses,
# and keys of older versions that nothing reads any more.
WITHOUT_EFFECT = (
    "auto_map",
    "deterministic_flash_attn",
    "global_attn_every_n_layers",  # layer_types has it, and wins where both are given
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "is_encoder_decoder",
    "layer_norm_eps",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "transformers_version",
)

# The weights in the order in which transformers looks for them: one file, or an index of shards.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Other formats and copies of the weights, and what training leaves behind.
_OTHER_FORMATS = (
    *(".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pb", ".pkl"),
    *(".pt", ".pth", ".safetensors", ".tflite", ".xml"),
    *(".bin.index.json", ".safetensors.index.json"),
)
_OTHER_FOLDERS = re.compile(r"\..*|__pycache__|onnx|openvino|coreml|runs|checkpoint-\d+")
_MODULE = re.compile(r"\d+_\w+")  # of sentence-transformers, which may have weights of its own


def weight_files(names: Iterable[str]) -> list[str]:
    """The weights among a folder's files: one file, or an index and its shards; perhaps none."""
    names = sorted(names)
    for single in WEIGHTS:
        if single in names:
            return [single]
        if f"{single}.index.json" in names:
            stem, suffix = single.split(".")
            shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            return [f"{single}.index.json", *filter(shard.fullmatch, names)]
    return []


def other_files(names: Iterable[str]) -> list[str]:
    """What belongs to a model beside weights and `config.json`: tokenizer, card, license, modules.

    Other formats of the weights do not, nor does code, which would run in ours.
    """

    def belongs(name: str) -> bool:
        *folders, file = PurePosixPath(name).parts
        module = bool(folders) and _MODULE.fullmatch(folders[0]) is not None
        return (
            name != "config.json"
            and not any(map(_OTHER_FOLDERS.fullmatch, folders))
            and (module or not file.endswith(_OTHER_FORMATS))
            and not file.endswith(".py")
        )

    return sorted(filter(belongs, names))


def find_source(source: str) -> Path:
    """The folder of a checkpoint; one on the Hub is downloaded into the cache.

    Raises:
        ValueError: if there is neither a folder nor a repository of this name.
        OSError: if the Hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        names = HfApi().list_repo_files(source)
        wanted = ["config.json", *weight_files(names), *other_files(names)]
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(
            f"{source}: there is no such folder, and no such model on the Hub: {error}"
        ) from error
    except Exception as error:  # of the HTTP library, which is not the same in all versions
        raise OSError(
            f"{source}: there is no such folder, and the Hub did not answer: {error}"
        ) from error


@dataclass(frozen=True)
class Source:
    """A checkpoint whose names and shapes fit our model.

    Attributes:
        folder: where it is.
        names: its files, relative to the folder.
        weights: those of `names` that are weights, see `weight_files`.
        architecture: its class in transformers, such as `"ModernBertForMaskedLM"`.
        config: what it is in our terms.
        notes: what was changed on the way, for the user to read.
    """

    folder: Path
    names: list[str]
    weights: list[str]
    architecture: str
    config: ChineseModernBertConfig
    notes: list[str]

    @property
    def model_class(self) -> type:
        """Our class for it."""
        return ARCHITECTURES[self.architecture]

    @property
    def other_files(self) -> list[str]:
        """Those of `names` that belong to the model beside its weights and `config.json`."""
        return other_files(self.names)


def read_source(folder: Path) -> Source:
    """Reads the configuration of a checkpoint and compares its tensors with our model's.

    Raises:
        OSError, ValueError: if it is no ModernBERT, has a setting that our model cannot express, or
            if a tensor is missing, unexpected or of another shape; the message names it.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no config.json, so this is not a model folder.")
    content = read_json(file)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != ModernBertConfig.model_type:
        raise ValueError(
            f"{file}: model_type is {model_type!r}; only 'modernbert' can be converted."
        )
    architecture = next(iter(content.get("architectures") or []), None)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file}: architectures begins with {architecture!r}; it must name the class that was "
            f"saved, one of {', '.join(ARCHITECTURES)}."
        )
    try:
        theirs = ModernBertConfig.from_dict(content)
    except Exception as error:  # of several kinds, from checks of values
        raise ValueError(f"{file}: transformers does not accept it: {error}") from error
    try:
        config, notes = convert_config(theirs)
        config.architectures = [ARCHITECTURES[architecture].__name__]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and _lies_in(path, folder)
    ]
    weights = weight_files(names)
    if not weights:
        raise ValueError(f"{folder}: no weights: neither {' nor '.join(WEIGHTS)}, nor an index.")
    source = Source(folder, names, weights, architecture, config, notes)
    check_tensors(source)
    return source


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's own: a link may lead to what is private. In the Hub's cache
    links of a snapshot lead to the repository's blobs."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent.resolve() / "blobs")
    return any(path.resolve().is_relative_to(home) for home in homes)


def convert_config(config: ModernBertConfig) -> tuple[ChineseModernBertConfig, list[str]]:
    """Our configuration of the same model, and notes about settings that had to change.

    Raises:
        ValueError: on a setting that our model cannot express; the message names it.
    """
    _refuse_what_is_new(config)
    values = {key: value for key, value in config.to_dict().items() if key not in WITHOUT_EFFECT}
    head_size = config.hidden_size // config.num_attention_heads
    if values.pop("head_dim", None) not in (None, head_size):
        raise ValueError(
            f"head_dim {config.head_dim} is not hidden_size / num_attention_heads, {head_size}; "
            "our model has no other."
        )
    values |= {
        "model_type": ChineseModernBertConfig.model_type,
        "norm_type": "layernorm",
        "mask_token_id": None,  # transformers' has none: the tokenizer says it
        "local_attention": 2 * config.sliding_window,  # rounds an odd one as transformers does
    }
    for entry in values["rope_parameters"].values():
        # transformers completes the entries of the layer types that are there, and no others.
        entry.setdefault("rope_type", entry.get("type", "default"))
        if entry.get("type") == entry["rope_type"]:
            del entry["type"]  # the older name of the same
    notes = _correct_token_ids(values)
    return ChineseModernBertConfig.from_dict(values), notes


def _refuse_what_is_new(config: ModernBertConfig) -> None:
    """Refuses a setting that a later transformers may have, unless it is at its default."""
    known = {field.name for field in fields(ChineseModernBertConfig)} | set(WITHOUT_EFFECT)
    default = type(config)()
    for name in sorted({field.name for field in fields(config)} - known):
        if getattr(config, name) != getattr(default, name):
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, which our model cannot express."
            )


def _correct_token_ids(values: dict) -> list[str]:
    """Replaces, in place, ids of special tokens that our configuration refuses; says which."""
    notes = []
    if isinstance(ends := values["eos_token_id"], list):
        values["eos_token_id"] = ends[0] if ends else None
        notes.append(f"eos_token_id: the first of {ends}")
    for name in ("bos", "eos", "cls", "sep"):
        key, size = f"{name}_token_id", values["vocab_size"]
        if values[key] is not None and not 0 <= values[key] < size:
            notes.append(f"{key}: none, {values[key]} lies outside the {size} entries")
            values[key] = None
    return notes


def tensors_of(source: Source) -> dict[str, tuple[str, list[int]]]:
    """Name of each tensor -> the file that holds it, and its shape; no tensor is read.

    Raises:
        OSError, ValueError: if a file is damaged, or one that the index names is missing.
    """
    index, files = None, source.weights
    if source.weights[0].endswith(".index.json"):
        index = read_json(source.folder / source.weights[0]).get("weight_map", {})
        files = sorted(set(index.values()))
    if missing := [file for file in files if file not in source.weights]:
        raise ValueError(
            f"{source.folder / source.weights[0]} names {missing[0]}, which is not there. Complete "
            "the download; shards have names such as model-00001-of-00002.safetensors."
        )
    found = {}
    for file in files:
        for name, shape in _header(source.folder / file).items():
            found[name] = file, shape
    for name, file in (index or {}).items():
        if name not in found or found[name][0] != file:
            raise ValueError(f"{source.folder / file}: lacks {name}, which the index names.")
    return found


def _header(file: Path) -> dict[str, list[int]]:
    try:
        if file.suffix == ".bin":
            return {name: list(tensor.shape) for name, tensor in load_pickled(file).items()}
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: not a file of weights: {error}") from error


def load_pickled(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` file, which stay on the disk until they are read.

    Raises:
        ValueError: if it holds something else.
    """
    mmap = zipfile.is_zipfile(file)  # files of before torch 1.6 are none, and are read at once
    tensors = torch.load(file, map_location="cpu", mmap=mmap, weights_only=True)
    if not isinstance(tensors, dict):
        raise ValueError(f"{file} holds a {type(tensors).__name__}, no dictionary of weights.")
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(
            f"{file} holds more than tensors ({', '.join(map(str, list(tensors)[:3]))}): save the "
            "dictionary of weights alone."
        )
    return tensors


def check_tensors(source: Source) -> None:
    """Compares names and shapes with those of our model, which is made without memory.

    Raises:
        OSError, ValueError: naming the first tensor that does not fit, and its file.
    """
    with torch.device("meta"):
        model = source.model_class(source.config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)
    found = tensors_of(source)
    where = source.folder / source.weights[0]
    if missing := sorted(expected.keys() - found.keys() - tied):
        raise ValueError(f"{where}: {missing[0]} is missing ({len(missing)} in all). {_ADVICE}")
    if unexpected := sorted(found.keys() - expected.keys()):
        file = source.folder / found[unexpected[0]][0]
        raise ValueError(
            f"{file}: {unexpected[0]} is unexpected ({len(unexpected)} in all). {_ADVICE}"
        )
    for name, (file, shape) in found.items():
        if shape != expected[name]:
            raise ValueError(
                f"{source.folder / file}: {name} has the shape {shape}, but by config.json it is "
                f"{expected[name]}. Correct config.json."
            )


_ADVICE = (
    "Either the weights are incomplete, or config.json does not describe them: see architectures, "
    "num_hidden_layers and the keys that end in _bias."
)
