"""What one model makes of the masked characters of held-out text, kept for `compare.py`.

    python -m experiments.twin.score runs/twin/1e-3-seed1/final \\
        --tokenizers . runs/twin/tokenizer --corpus data/valid.jsonl.xz \\
        --output experiments/twin/results/twin.1e-3.seed1.json

15 % of the words are masked, always the same ones, in pieces of up to 510 characters. With the same
two tokenizers all models have to tell the same characters, so bits per character and the share of
characters named right compare across vocabularies. A character hidden under [UNK] costs the bits of
[UNK] and, beyond that, those that tell it from the other characters unknown in this text by their
frequencies; it is never right.
"""

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from experiments.learning_per_hour.results import made_with
from experiments.twin.masked_words import Encoded, Piece, masked_pieces
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.command import readable_errors
from pretraining.data.corpus import read_documents
from pretraining.data.tokens import (
    UNKNOWN,
    open_tokenizer,
    special_token_ids,
    token_spellings,
    tokenizer_sha256,
)
from pretraining.files import check_file, write_json
from pretraining.machine import default_device

BATCH_TOKENS = 2048
KINDS = (ChineseModernBertForMaskedLM, BertForMaskedLM)  # in the order of --tokenizers


@dataclass(frozen=True)
class Scores:
    """What a model makes of each document in which something is masked.

    Attributes:
        text: hash of the pieces and of what is masked in them.
        domains: (documents,) domain and script.
        masked: (documents,) masked characters.
        bits: (documents,) cross-entropy of what is masked.
        right: (documents,) masked characters that it names.
        unknown: (documents,) masked characters that its vocabulary lacks.
    """

    text: str
    domains: list[str]
    masked: list[int]
    bits: list[float]
    right: list[int]
    unknown: list[int]


class Vocabulary:
    """Tells what models of one tokenizer make of pieces.

    Args:
        file: tokenizer.json.

    Raises:
        OSError, ValueError: if it cannot be read.
    """

    def __init__(self, file: Path):
        self.tokenizer = open_tokenizer(file)
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.ids = special_token_ids(self.tokenizer)
        self.unknown_id = self.tokenizer.token_to_id(UNKNOWN)
        self.spellings = token_spellings(self.tokenizer)

    def scores(
        self, model: PreTrainedModel, pieces: Sequence[Piece], number: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pieces,) bits, right and unknown characters of each piece.

        Args:
            number: of this tokenizer in `Piece.sides`.
        """
        encoded = [piece.sides[number] for piece in pieces]
        bits, right, unknown = np.zeros((3, len(pieces)))
        cost = self._unknown_bits(pieces, encoded)
        for batch in _batches(encoded):
            nats, predicted = self._predict(model, [encoded[place] for place in batch])
            for place, of_piece, ids in zip(batch, nats, predicted, strict=True):
                hidden = self._unknown(pieces[place], encoded[place], encoded[place].masked)
                unknown[place] = len(hidden)
                bits[place] = of_piece.sum() / math.log(2) + sum(cost[each] for each in hidden)
                right[place] = self._named(pieces[place], encoded[place], ids)
        return bits, right, unknown

    def _predict(
        self, model: PreTrainedModel, batch: list[Encoded]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each piece of a batch (masked tokens,): nats of the token, and id predicted."""
        longest = max(len(each.ids) for each in batch) + 2
        inputs = torch.full((len(batch), longest), self.ids["pad_id"])
        real, masked = torch.zeros_like(inputs), torch.zeros(inputs.shape, dtype=torch.bool)
        for row, each in enumerate(batch):
            shown = np.where(each.masked, self.ids["mask_id"], each.ids)
            framed = [self.ids["cls_id"], *shown, self.ids["sep_id"]]
            inputs[row, : len(framed)], real[row, : len(framed)] = torch.tensor(framed), 1
            masked[row, 1 : len(each.ids) + 1] = torch.from_numpy(each.masked)
        labels = torch.from_numpy(np.concatenate([each.ids[each.masked] for each in batch]))
        with torch.inference_mode():
            encode = model.base_model
            states = encode(inputs.to(model.device), real.to(model.device)).last_hidden_state
            logits = masked_logits(model, states[masked.to(model.device)])
            nats = F.cross_entropy(logits, labels.to(model.device), reduction="none")
        ends = np.cumsum([each.masked.sum() for each in batch])[:-1]
        found = nats.cpu().numpy(), logits.argmax(-1).cpu().numpy()
        return np.split(found[0], ends), np.split(found[1], ends)

    def _named(self, piece: Piece, encoded: Encoded, predicted: np.ndarray) -> int:
        """How many masked characters of a piece the predicted tokens spell in their place."""
        right = piece.masked.copy()
        labels, spans = encoded.ids[encoded.masked], encoded.offsets[encoded.masked]
        for label, guess, (start, end) in zip(labels, predicted, spans, strict=True):
            if label == self.unknown_id:
                right[start:end] = False
            elif guess != label:
                spelled = self.spellings[guess][: end - start].ljust(end - start, "\0")
                # A character of several tokens needs all of them.
                same = [a == b for a, b in zip(spelled, piece.text[start:end], strict=True)]
                right[start:end] &= same
        return int(right.sum())

    def _unknown(self, piece: Piece, encoded: Encoded, chosen: np.ndarray | bool) -> str:
        """The characters that [UNK] hides in a piece, among the chosen tokens."""
        spans = encoded.offsets[chosen & (encoded.ids == self.unknown_id)]
        return "".join(piece.text[start:end] for start, end in spans)

    def _unknown_bits(self, pieces: Sequence[Piece], encoded: list[Encoded]) -> dict[str, float]:
        """What it costs to tell each unknown character, masked or not, from the others.

        By their frequencies in this very text, which nobody could know: less than a model would
        have to pay.
        """
        counts = Counter()
        for piece, each in zip(pieces, encoded, strict=True):
            counts.update(self._unknown(piece, each, True))
        return {character: math.log2(counts.total() / n) for character, n in counts.items()}


def masked_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """(places, vocab_size) from the encoder's states (places, hidden size) at masked places.

    The models themselves would compute logits everywhere, which takes half of the time.
    """
    if isinstance(model, BertForMaskedLM):
        return model.cls(states)
    return model.decoder(model.projection(model.head(states)))


def _batches(encoded: list[Encoded]) -> Iterator[list[int]]:
    """Places of pieces of about the same length, of at most `BATCH_TOKENS` tokens with padding."""
    batch: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place].ids)):
        if (len(batch) + 1) * (len(encoded[place].ids) + 2) > BATCH_TOKENS and batch:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def of_documents(
    pieces: Sequence[Piece], bits: np.ndarray, right: np.ndarray, unknown: np.ndarray
) -> Scores:
    """The sums over the pieces of each document."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.text.encode() + piece.masked.tobytes())
    numbers, firsts, places = np.unique(
        [piece.document for piece in pieces], return_index=True, return_inverse=True
    )

    def sums(values) -> np.ndarray:
        return np.bincount(places, values, len(numbers))

    def counts(values) -> list[int]:
        return sums(values).astype(int).tolist()

    return Scores(
        text=digest.hexdigest()[:16],
        domains=[pieces[first].domain for first in firsts],
        masked=counts([piece.masked.sum() for piece in pieces]),
        bits=sums(bits).round(3).tolist(),
        right=counts(right),
        unknown=counts(unknown),
    )


def score(folder: Path, tokenizers: Sequence[Path], corpus: Sequence[str]) -> Scores:
    """The scores of a model on held-out text.

    Args:
        folder: of the model, with its tokenizer, which has to be one of the two.
        tokenizers: folders of our tokenizer and of the twin's.
        corpus: files, folders or patterns.

    Raises:
        OSError, ValueError: naming what cannot be used.
    """
    files = [each / "tokenizer.json" for each in tokenizers]
    hashes = [tokenizer_sha256(file) for file in files]
    own = tokenizer_sha256(folder / "tokenizer.json")
    if own not in hashes:
        raise ValueError(
            f"{folder}/tokenizer.json: neither of --tokenizers {' '.join(map(str, tokenizers))}."
        )
    number, vocabularies = hashes.index(own), [Vocabulary(file) for file in files]
    both = [each.tokenizer for each in vocabularies]
    pieces = list(masked_pieces(read_documents(corpus), both))
    if not pieces:
        raise ValueError(f"{' '.join(corpus)}: nothing to mask; give more text.")
    model = KINDS[number].from_pretrained(folder, dtype=torch.float32).eval()
    model.to(default_device())
    return of_documents(pieces, *vocabularies[number].scores(model, pieces, number))


def main() -> None:
    disable_progress_bar()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, help="folder of a model of ours or a twin, with its tokenizer")
    add("--tokenizers", type=Path, nargs=2, required=True, help="folders: ours and the twin's")
    add("--corpus", nargs="+", required=True, help="held-out text: files, folders or patterns")
    add("--output", type=Path, required=True, help="JSON file for the scores")
    arguments = parser.parse_args()
    with readable_errors("score"):
        check_file(arguments.output)
        scores = score(arguments.model, arguments.tokenizers, arguments.corpus)
    write_json(arguments.output, {**asdict(scores), "made_with": made_with()})
    print(f"{sum(scores.bits) / sum(scores.masked):.3f} bits per character")


if __name__ == "__main__":
    main()
