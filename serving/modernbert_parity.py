"""Whether our model gives the outputs of transformers' ModernBERT for the same checkpoint.

Both read a few documents in fp32: padded on the right and on the left, and packed into one row.
transformers' code lets the documents of a packed row see each other, so there its reference is
one document at a time. Only one of the two models is in memory.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from serving.export_check import SMALLEST
from serving.modernbert_source import Source
from serving.runtime import padded

# Largest difference, relative to the largest output. fp32 adds up the same numbers in another
# order, which after 22 layers moves the outputs by some 1e-6 of their size; a wrong norm, window or
# RoPE base by 1e-2 and more, another approximation of GELU by about 1e-3.
TOLERANCE = 1e-4

TEXTS = (
    "早上好。",
    "图书馆周末也开门，借书的人比平时多。The café next door opens at eight, too.",
    "春天的河边种满了柳树。孩子们放学以后在那里放风筝，老人们坐在长椅上下棋、聊天，谁也不着急回家。",
)

RIGHT, LEFT, PACKED = "padded right", "padded left", "packed"


@dataclass(frozen=True)
class Agreement:
    """How far the outputs in one form of the input are apart.

    Attributes:
        form: `RIGHT`, `LEFT` or `PACKED`.
        difference: the largest one.
        scale: the largest output of transformers' model.
        allowed: the largest difference that passes.
    """

    form: str
    difference: float
    scale: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference passes; NaN does not."""
        return self.difference <= self.allowed

    def line(self) -> str:
        """A row of the table under `HEADER`."""
        return f"| {self.form} | {self.difference:.1e} | {self.scale:.3g} | {self.allowed:.1e} |"


HEADER = "| form | largest difference | largest output | allowed |\n|---|---|---|---|"


def compare(source: Source, tolerance: float) -> list[Agreement]:
    """Runs both models on the same documents.

    Args:
        tolerance: largest difference relative to the largest output, which counts as `SMALLEST`
            if it is less.

    Raises:
        OSError, ValueError: if a model or the tokenizer cannot be opened.
    """
    documents = probe_documents(source)
    reference_class = getattr(transformers, source.architecture)
    reference = outputs_of(reference_class, source.folder, reference_batches(source, documents))
    ours = outputs_of(
        source.model_class, source.folder, our_batches(source, documents), config=source.config
    )
    return [
        Agreement(
            form,
            difference=(ours[form] - expected).abs().max().item(),
            scale=(scale := expected.abs().max().item()),
            allowed=tolerance * max(SMALLEST, scale),
        )
        for form, expected in reference.items()
    ]


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a ModernBERT's folder, or None if it has none.

    Raises:
        ValueError: if it cannot be opened.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a damaged file any kind is raised
        raise ValueError(f"{folder}: its tokenizer cannot be opened: {error!r}") from error


def probe_documents(source: Source) -> list[Tensor]:
    """Token ids of three documents; the last one is longer than the local window.

    Random ids stand where there is no tokenizer, and behind a text of which it makes too few: one
    without Chinese may take a whole text for a single unknown token, or for none.
    """
    config = source.config
    longest = min(config.max_position_embeddings, config.local_attention + 40)
    generator = torch.Generator().manual_seed(0)

    def random_ids(length: int) -> Tensor:
        return torch.randint(config.vocab_size, (min(length, longest),), generator=generator)

    tokenizer = open_tokenizer(source.folder)
    if tokenizer is None:
        return [random_ids(length) for length in (3, 30, longest)]
    texts = [*TEXTS[:-1], TEXTS[-1] * (1 + longest // 10)]
    documents = [
        torch.tensor(tokenizer(text, truncation=True, max_length=longest)["input_ids"]).long()
        for text in texts
    ]
    if (largest := max(map(int, torch.cat(documents)), default=0)) >= config.vocab_size:
        raise ValueError(
            f"{source.folder}: its tokenizer gives the id {largest}, but vocab_size is "
            f"{config.vocab_size}. Tokenizer and weights belong to different models."
        )
    documents = [document if len(document) else random_ids(3) for document in documents]
    missing = longest - len(documents[-1])
    return [*documents[:-1], torch.cat([documents[-1], random_ids(missing)])]


def pad(documents: list[Tensor], side: str, pad_id: int) -> dict[str, Tensor]:
    """One document a row, (documents, longest) each."""
    ids, mask = padded([document.tolist() for document in documents], pad_id, side)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def pack(documents: list[Tensor]) -> dict[str, Tensor]:
    """All documents in one row, (1, tokens) each."""
    return pad([torch.cat(documents)], "right", 0) | {
        "position_ids": torch.cat([torch.arange(len(document)) for document in documents])[None]
    }


def our_batches(source: Source, documents: list[Tensor]) -> dict[str, list[dict[str, Tensor]]]:
    """Form -> the batches that our model reads."""
    pad_id = source.config.pad_token_id or 0
    batches = {
        RIGHT: [pad(documents, "right", pad_id)],
        LEFT: [pad(documents, "left", pad_id)],
        PACKED: [pack(documents)],
    }
    return _as_choices(batches) if _is_choice(source) else batches


def reference_batches(
    source: Source, documents: list[Tensor]
) -> dict[str, list[dict[str, Tensor]]]:
    """Form -> the batches that transformers' model reads, for the same outputs."""
    ours = our_batches(source, documents)
    batches = dict(ours)
    if (
        source.architecture == "ModernBertForSequenceClassification"
        and source.config.classifier_pooling == "cls"
    ):
        # transformers' classifier takes the state at position 0 for the first token's even where
        # position 0 is padding. What it means is what it gives with padding on the right.
        batches[LEFT] = ours[RIGHT]
    if PACKED in batches:
        batches[PACKED] = [pad([document], "right", 0) for document in documents]
    return batches


def _is_choice(source: Source) -> bool:
    return source.architecture == "ModernBertForMultipleChoice"


def _as_choices(batches: dict[str, list[dict[str, Tensor]]]) -> dict[str, list[dict[str, Tensor]]]:
    """The documents as choices of one question, for which there is no packed form."""
    return {
        form: [{name: tensor[None] for name, tensor in batch.items()} for batch in batches[form]]
        for form in (RIGHT, LEFT)
    }


def outputs_of(
    model_class: type[PreTrainedModel],
    folder: Path,
    batches: dict[str, list[dict[str, Tensor]]],
    **options,
) -> dict[str, Tensor]:
    """Form -> what a model gives: (tokens, ...) of the real tokens, or (documents, labels)."""
    model = model_class.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return {
            form: torch.cat([_values(model(**batch), batch) for batch in given])
            for form, given in batches.items()
        }


def _values(outputs, batch: dict[str, Tensor]) -> Tensor:
    if "start_logits" in outputs:
        values = torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    else:
        values = outputs["logits" if "logits" in outputs else "last_hidden_state"]
    return values if values.dim() == 2 else values[batch["attention_mask"].bool()]
