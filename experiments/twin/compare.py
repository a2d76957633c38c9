"""Our model and the twin in one table, on the same masked characters of held-out text.

    python -m experiments.twin.compare --ours runs/ours-1/stage1/final runs/ours-2/stage1/final \\
        --twin runs/twin/seed1/final runs/twin/seed2/final --corpus data/valid.jsonl.xz

15 % of the words are masked, always the same ones, in pieces of up to 510 characters. Both models
have to tell the same characters, so bits per character and the share of characters named right
compare across vocabularies. Several folders of a side are its seeds. A character that the twin
hides under [UNK] costs it the bits of [UNK] and, beyond that, those that tell it from the other
characters unknown in this text by their frequencies; it is never right.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from experiments.twin.masked_words import Encoded, Piece, masked_pieces
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.corpus import read_documents
from pretraining.data.tokens import (
    UNKNOWN,
    open_tokenizer,
    special_token_ids,
    token_spellings,
    tokenizer_sha256,
)

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """What a model makes of each piece.

    Attributes:
        bits: (pieces,) cross-entropy of what is masked.
        right: (pieces,) masked characters that it names.
        unknown: (pieces,) masked characters that its vocabulary lacks.
    """

    bits: np.ndarray
    right: np.ndarray
    unknown: np.ndarray


class Side:
    """The models of one vocabulary.

    Args:
        kind: their class.
        folders: model folders, each with its tokenizer.

    Raises:
        OSError, ValueError: if a tokenizer cannot be read, or not all are the same.
    """

    def __init__(self, kind: type[PreTrainedModel], folders: Sequence[Path]):
        self.kind, self.folders = kind, folders
        files = [folder / "tokenizer.json" for folder in folders]
        for file in files[1:]:
            if tokenizer_sha256(file) != tokenizer_sha256(files[0]):
                raise ValueError(
                    f"{file}: another tokenizer than {files[0]}; seeds of a side share theirs."
                )
        self.tokenizer = open_tokenizer(files[0])
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.ids = special_token_ids(self.tokenizer)
        self.unknown_id = self.tokenizer.token_to_id(UNKNOWN)
        self.spellings = token_spellings(self.tokenizer)

    def scores(self, pieces: Sequence[Piece], number: int, folder: Path) -> Scores:
        """What one of the models makes of the pieces.

        Args:
            number: of this side in `Piece.sides`.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self.kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()
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
        return Scores(bits, right, unknown)

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
            output = model(input_ids=inputs.to(model.device), attention_mask=real.to(model.device))
            logits = output.logits[masked.to(model.device)].float()
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


def table(pieces: Sequence[Piece], sides: dict[str, list[Scores]]) -> str:
    """Markdown: a line for all text and for each domain, means over the seeds.

    Args:
        sides: the scores of each side's seeds, by its name.
    """
    characters = np.array([piece.masked.sum() for piece in pieces])
    domains = np.array([piece.domain for piece in pieces])
    heads = ["masked characters", *(f"unknown, {name}" for name in sides)]
    heads += [f"{what}, {name}" for what in ("right", "bits per character") for name in sides]
    lines = [f"| held-out text | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name in ("all", *np.unique(domains)):
        chosen = np.ones_like(domains, dtype=bool) if name == "all" else domains == name
        of = characters[chosen].sum()

        def mean(what: str, seeds: list[Scores], chosen=chosen, of=of) -> float:
            return float(np.mean([getattr(each, what)[chosen].sum() / of for each in seeds]))

        cells = [f"{of:,}"]
        cells += [f"{mean('unknown', seeds):.2%}" for seeds in sides.values()]
        cells += [f"{mean('right', seeds):.1%}" for seeds in sides.values()]
        cells += [f"{mean('bits', seeds):.3f}" for seeds in sides.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(pieces: Sequence[Piece], ours: list[Scores], twin: list[Scores]) -> str:
    """The margin in bits per character, beside its standard error and the spread of the seeds.

    The standard error is over documents, which are what is independent of each other.
    """
    characters = np.array([piece.masked.sum() for piece in pieces])
    seeds = [[each.bits.sum() / characters.sum() for each in side] for side in (ours, twin)]
    margin = float(np.mean(seeds[1]) - np.mean(seeds[0]))
    ahead = np.mean([each.bits for each in twin], axis=0) - np.mean(
        [each.bits for each in ours], axis=0
    )
    documents = np.array([piece.document for piece in pieces])
    residuals = np.bincount(documents, ahead - margin * characters)
    error = math.sqrt((residuals**2).sum()) / characters.sum()
    shown = [", ".join(f"{each:.3f}" for each in side) for side in seeds]
    text = (
        f"bits per character by seed: ours {shown[0]}; twin {shown[1]}\n"
        f"ours is ahead by {margin:.3f} ± {error:.3f} (standard error over documents)"
    )
    if min(map(len, seeds)) < 2:
        return text + "; no verdict, which needs two seeds a side"
    spread = max(max(side) - min(side) for side in seeds)
    word = "larger" if margin > spread else "not larger"
    return text + f"; the margin is {word} than the spread of the seeds, {spread:.3f}"


def main() -> None:
    disable_progress_bar()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ours", type=Path, nargs="+", required=True, help="folders of our model, one a seed")
    add("--twin", type=Path, nargs="+", required=True, help="folders of the twin, one a seed")
    add("--corpus", nargs="+", required=True, help="held-out text: files, folders or patterns")
    arguments = parser.parse_args()
    try:
        sides = {
            "ours": Side(ChineseModernBertForMaskedLM, arguments.ours),
            "twin": Side(BertForMaskedLM, arguments.twin),
        }
        tokenizers = [side.tokenizer for side in sides.values()]
        pieces = list(masked_pieces(read_documents(arguments.corpus), tokenizers))
        if not pieces:
            raise ValueError(f"{' '.join(arguments.corpus)}: nothing to mask; give more text.")
        scores = {
            name: [side.scores(pieces, number, folder) for folder in side.folders]
            for number, (name, side) in enumerate(sides.items())
        }
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"compare: {error}")
    print(table(pieces, scores))
    print(verdict(pieces, scores["ours"], scores["twin"]))


if __name__ == "__main__":
    main()
