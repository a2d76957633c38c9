"""Models by name: folders and Hub names, random weights, and the arithmetic that is fast here."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

from pretraining.files import sha256_of
from products_chinese_modernbert import products_use_bf16

RANDOM = "random:"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_BESIDE = ("config.json", "tokenizer*", "vocab*", "*_chinese_modernbert.py")
# What the models of transformers call their last layer.
_CLASSIFIERS = ("classifier", "score", "logits_proj", "classification_head")


@dataclass(frozen=True)
class Model:
    """A model to fine-tune.

    Attributes:
        source: a folder or Hub name that transformers' Auto classes open; with "random:" before it,
            the same architecture with random weights.
        name: how tables and files call it.
    """

    source: str
    name: str

    @property
    def is_random(self) -> bool:
        """Whether its weights are random."""
        return self.source.startswith(RANDOM)

    @property
    def file_name(self) -> str:
        """Its name as a folder of results is called."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-")

    @property
    def folder(self) -> str:
        """The folder or Hub name."""
        return self.source.removeprefix(RANDOM)

    def fingerprint(self) -> str:
        """A hash of what a folder's results follow from, so that those of another state are not
        taken for its own: configuration, tokenizer, code, and weights if they are not random; ""
        for a Hub name."""
        folder = Path(self.folder)
        patterns = _BESIDE if self.is_random else (*_BESIDE, *_WEIGHTS)
        digest = hashlib.sha256()
        found = sorted(file for pattern in patterns for file in folder.glob(pattern))
        files = list(filter(Path.is_file, found))
        for file in files:
            digest.update(bytes.fromhex(sha256_of(file)))
        return digest.hexdigest()[:16] if files else ""

    def build(self, head, classes: list[str] | None, seed: int):
        """The model with a new head, and its tokenizer.

        Args:
            head: a `finetuning.heads.Head`.
            classes: the names of its outputs, or None.
            seed: of the weights that are random.

        Raises:
            ValueError: if weights of the encoder are missing, or not of the shape that its
                configuration says.
        """
        set_seed(seed)
        names = {}
        if head.auto is AutoModelForQuestionAnswering:
            names["num_labels"] = 2  # start and end; the folder may have told 15 classes apart
        if classes is not None:
            names["id2label"] = dict(enumerate(classes))
            names["label2id"] = {label: index for index, label in enumerate(classes)}
            if head.auto is AutoModelForSequenceClassification:
                # The folder may have been a reranker, or told several labels of a text.
                names["problem_type"] = "single_label_classification"
        options = {"trust_remote_code": True, **names}
        if self.is_random:
            config = AutoConfig.from_pretrained(self.folder, **options)
            model = head.auto.from_config(config, dtype=torch.float32, trust_remote_code=True)
        else:
            # A folder may have been fine-tuned on another task, with a head of another size.
            model, report = head.auto.from_pretrained(
                self.folder,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
            _check_encoder(self.folder, model, report)
            fresh = {*report["missing_keys"]} | {name for name, *_ in report["mismatched_keys"]}
            head_weights = {name for name in model.state_dict() if name.startswith(_CLASSIFIERS)}
            if head_weights - fresh and self._has_another_head(type(model).__name__, classes):
                new = head.auto.from_config(model.config, trust_remote_code=True).to(torch.float32)
                for name in _CLASSIFIERS:
                    if hasattr(model, name):
                        setattr(model, name, getattr(new, name))
        return model, open_tokenizer(self.folder)

    def _has_another_head(self, architecture: str, classes: list[str] | None) -> bool:
        """Whether the folder was fine-tuned with another head, or to tell other classes apart.

        Heads of different kinds may have a last layer of one name and size.
        """
        stored = AutoConfig.from_pretrained(self.folder, trust_remote_code=True)
        if not stored.architectures:
            return False
        if architecture not in stored.architectures:
            return True
        known = [stored.id2label[index] for index in sorted(stored.id2label)]
        return classes is not None and known != classes


def open_tokenizer(folder: str):
    """The tokenizer of a folder or Hub name.

    Raises:
        ValueError: if it has no vocabulary. For BERT's kin transformers makes such a tokenizer up
            where the files are missing, and every word becomes [UNK].
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ValueError(
            f"{folder}: has no tokenizer; put its files there (tokenizer.json, or vocab.txt)."
        )
    return tokenizer


def _check_encoder(folder: str, model, report: dict) -> None:
    """Refuses weights of which transformers would train a part from random numbers."""
    encoder = f"{model.base_model_prefix}."
    mismatched = sorted(name for name, *_ in report["mismatched_keys"] if name.startswith(encoder))
    if mismatched:
        raise ValueError(
            f"{folder}: {mismatched[0]} does not have the shape that config.json says; the weights "
            "belong to another configuration."
        )
    # Masked models are stored without BERT's pooler, which belongs to the head.
    missing = sorted(
        name
        for name in report["missing_keys"]
        if name.startswith(encoder) and ".pooler." not in name
    )
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights of the encoder are not in its files, such as "
            f"{missing[0]}; they belong to another configuration, or were saved under other names."
        )


def environment(place: torch.device) -> dict:
    """What a run on a device depends on besides its settings, as a result keeps it."""
    return {
        "device": str(place),
        "dtype": "bf16" if bf16_is_fast(place) else "fp32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def bf16_is_fast(place: torch.device) -> bool:
    """Whether the device multiplies in bf16, so that autocast saves time."""
    if place.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return place.type == "cpu" and products_use_bf16()
