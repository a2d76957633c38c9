"""The three ways to compare two texts that sentence-transformers trains, behind one table.

bi_encoder         one vector a text, compared by their cosine: an index can hold them
cross_encoder      both texts in one input, one score: the most exact, for few candidates
late_interaction   one vector a token, each of the query's with its nearest (ColBERT's MaxSim)
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from pretraining.files import read_json


class _WithoutCard:
    """A trainer without the library's card, which quotes rows of data that are not ours."""

    def add_model_card_callback(self, default_args_dict: dict) -> None:
        """Adds nothing."""


class _BiEncoderTrainer(_WithoutCard, SentenceTransformerTrainer):
    pass


class _CrossEncoderTrainer(_WithoutCard, CrossEncoderTrainer):
    pass


class _LateInteractionTrainer(_WithoutCard, MultiVectorEncoderTrainer):
    pass


@dataclass(frozen=True)
class Architecture:
    """The library's classes for one way of comparing, and how they are opened.

    Args:
        model, trainer, arguments: classes of sentence-transformers.
        options: of the model's class, when a new one is made.
        losses: kind of a task -> its losses, the default first; see `embedding.losses`.
    """

    model: type
    trainer: type
    arguments: type
    options: dict
    losses: dict[str, tuple[str, ...]]


CONTRASTED = {kind: ("ranking",) for kind in ("pairs", "triplets", "ranked", "nli", "questions")}
ARCHITECTURES = {
    "bi_encoder": Architecture(
        SentenceTransformer,
        _BiEncoderTrainer,
        SentenceTransformerTrainingArguments,
        {},
        {
            **CONTRASTED,
            "triplets": ("ranking", "triplet"),
            "ranked": ("triplet", "ranking"),
            "scored": ("cosent", "cosine"),
            "teacher": ("vectors", "similarities"),
            "neighbors": ("similarities",),
        },
    ),
    "cross_encoder": Architecture(
        CrossEncoder,
        _CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        {"num_labels": 1},
        {**CONTRASTED, "scored": ("cross_entropy",)},
    ),
    "late_interaction": Architecture(
        MultiVectorEncoder,
        _LateInteractionTrainer,
        MultiVectorEncoderTrainingArguments,
        {},
        CONTRASTED,
    ),
}


def find_file(model: str, name: str) -> Path | None:
    """A file of a folder, or of a model on the Hub; None if the model has none of this name.

    Raises:
        OSError: if there is no such model.
    """
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.exists() else None
    try:
        return Path(hf_hub_download(model, name))
    except EntryNotFoundError:
        return None


def _classifier_outputs(model: str) -> int:
    """How many outputs a classifier of texts has; 0 if the model is none."""
    config = find_file(model, "config.json")
    content = read_json(config) if config else {}
    [head, *_] = content.get("architectures") or [""]
    # transformers leaves the labels out where there are two.
    return len(content.get("id2label", "01")) if "SequenceClassification" in head else 0


def check_outputs(model: str) -> None:
    """Refuses a classifier with several outputs as a cross-encoder.

    Raises:
        OSError: if it is a name of which the Hub has no model.
        ValueError: if it is one.
    """
    if (outputs := _classifier_outputs(model)) > 1:
        raise ValueError(f"{model} tells {outputs} labels apart; a cross-encoder has one output.")


def architecture_of(model: str) -> str:
    """Which of `ARCHITECTURES` a folder or model was saved as; a plain encoder is a bi-encoder.

    A classifier of pairs with one output is a cross-encoder: rerankers are published as such.

    Raises:
        OSError: if it is a name of which the Hub has no model.
    """
    if settings := find_file(model, "config_sentence_transformers.json"):
        kind = read_json(settings).get("model_type")
        names = (name for name, each in ARCHITECTURES.items() if each.model.__name__ == kind)
        return next(names, "bi_encoder")
    return "cross_encoder" if _classifier_outputs(model) == 1 else "bi_encoder"
