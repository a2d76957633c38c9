"""What a masked-language model achieves on held-out rows, beside what counting alone does.

    python -m pretraining.model_report --model . --eval rows/valid-512 --train rows/train-512

Prints a Markdown table for each row set: masked tokens, masked accuracy and bits per character over
all, by domain where the rows keep domains apart, by length of the document and by position in it,
each with its standard error over documents. 15 % of the tokens are masked, whole words, always the
same. With `--train`, a unigram and a 5-gram that counted those rows name the same tokens. With
`--sentences`, a further table compares the model on sentences that each stand alone with the same
masked tokens among the other sentences of their documents.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from data_collator_wwm import IGNORED
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.command import readable_errors
from pretraining.data.encoding import open_with_tokenizer
from pretraining.data.rows import Rows
from pretraining.data.tokens import token_lengths, token_spellings
from pretraining.machine import default_device
from pretraining.run import ngram_baseline
from pretraining.run.evaluation import (
    EvaluationRows,
    evaluation_collator,
    evaluation_labels,
    masked_tokens,
    reduce_logits,
)
from pretraining.run.figures import Estimate, MaskedTokens, ratio
from pretraining.run.held_out_groups import token_places
from pretraining.run.sentences_alone import SENTENCES, SentenceEnds, SentencesAlone, sentence_places

BATCH_TOKENS = 4096

# Domains of everyday text, which are printed first.
EVERYDAY = (
    *("dialogue", "education", "encyclopedia", "essay", "fiction", "instruction", "lifestyle"),
    *("news", "poetry", "qa", "review", "sentences", "social", "web"),
)


@torch.inference_mode()
def predict(folder: str, held_out: Rows, collator: Callable) -> np.ndarray:
    """What a model folder predicts for the masked tokens of a row set, in fp32.

    Returns:
        (masked tokens, 2), of these as from `reduce_logits`.
    """
    device = default_device()
    model = ChineseModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    model.eval().to(device)
    features, at_once = EvaluationRows(held_out), max(1, BATCH_TOKENS // held_out.seq_len)
    reduced = []
    for first in tqdm(
        range(0, len(features), at_once), desc="model", unit=" batches", disable=None
    ):
        some = range(first, min(first + at_once, len(features)))
        batch = collator([features[index] for index in some])
        labels = batch.pop("labels").to(device)
        hidden = model.model(**{name: value.to(device) for name, value in batch.items()})[0]
        # Logits of the other tokens would be most of the work.
        masked = labels != IGNORED
        logits = model.decoder(model.projection(model.head(hidden[masked])))
        reduced.append(reduce_logits(logits, labels[masked]).cpu().numpy())
    return np.concatenate(reduced)


@dataclass(frozen=True)
class Report:
    """What models achieve on the same masked tokens.

    Attributes:
        title: what the tokens are from.
        sides: {column: what was predicted}.
        groups: {suffix of `held_out_groups`: (tokens,) bool}, in the order of the lines.
    """

    title: str
    sides: dict[str, MaskedTokens]
    groups: dict[str, np.ndarray]

    def table(self) -> str:
        """Markdown: a line for all tokens and for each group."""
        heads = [
            "masked tokens",
            *(f"masked accuracy, {side}" for side in self.sides),
            *(f"bits per character, {side}" for side in self.sides),
        ]
        lines = [f"| {self.title} | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
        for suffix, chosen in {"": None, **self.groups}.items():
            scores = [tokens.score(chosen) for tokens in self.sides.values()]
            cells = [f"{scores[0].tokens:,}", *(percent(score.accuracy) for score in scores)]
            cells += [plain(score.bits_per_character) for score in scores]
            lines.append(f"| {suffix.removeprefix('/') or 'all'} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def by_character(self, tokenizer: Tokenizer) -> str:
        """A line: masked accuracy by character, to compare with other vocabularies."""
        spellings = token_spellings(tokenizer)
        figures = (
            f"{side} {percent(tokens.character_accuracy(spellings))}"
            for side, tokens in self.sides.items()
        )
        return f"Characters spelled right: {', '.join(figures)}."


def percent(figure: Estimate) -> str:
    error = "–" if math.isnan(figure.error) else f"{100 * figure.error:.1f}"
    return f"{100 * figure.value:.1f} ± {error} %"


def plain(figure: Estimate) -> str:
    error = "–" if math.isnan(figure.error) else f"{figure.error:.2f}"
    return f"{figure.value:.2f} ± {error}"


def everyday_first(domains: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Groups by domain in the order of the report."""

    def place(suffix: str) -> tuple[bool, str]:
        return suffix.removeprefix("/").split(" (")[0] not in EVERYDAY, suffix

    return {suffix: domains[suffix] for suffix in sorted(domains, key=place)}


def report(
    title: str, held_out: Rows, tokenizer: Tokenizer, predictions: dict[str, np.ndarray]
) -> Report:
    """What one or more models achieve on a row set, by domain, length and position.

    Raises:
        ValueError: if no token is masked.
    """
    labels, every = evaluation_labels(held_out), token_places(held_out)
    lengths, sides = token_lengths(tokenizer), {}
    for side, reduced in predictions.items():
        sides[side], places = masked_tokens(labels, reduced, every, lengths)
    groups = everyday_first(places.by_domain()) | places.by_length() | places.by_position()
    return Report(title, sides, groups)


def report_on_sentences(
    title: str, held_out: Rows, tokenizer: Tokenizer, among: np.ndarray, model: str
) -> Report:
    """What a model achieves on sentences alone and among others, by domain and length.

    Args:
        among: its predictions on the rows as they are, (masked tokens, 2).
        model: its folder.

    Raises:
        ValueError: if there is nothing to compare.
    """
    ends, special = SentenceEnds.of(tokenizer), held_out.manifest["special_token_ids"]
    # The same tokens are masked, in the same order.
    alone = predict(model, held_out, SentencesAlone(evaluation_collator(held_out), ends, special))
    labels, every = evaluation_labels(held_out), token_places(held_out)
    compared, lengths = sentence_places(held_out, every, ends)
    every = dataclasses.replace(every, lengths=lengths)
    chosen, sides = compared[labels != IGNORED], {}
    labels = np.where(compared, labels, IGNORED)
    for side, reduced in (("alone", alone), ("among others", among)):
        sides[side], places = masked_tokens(
            labels, reduced[chosen], every, token_lengths(tokenizer)
        )
    return Report(title, sides, everyday_first(places.by_domain()) | places.by_length(SENTENCES))


def check_sentences(folder: Path, held_out: Rows, tokenizer: Tokenizer) -> None:
    """Checks that the sentences of a row set can be compared.

    Raises:
        ValueError: if no document has two sentences.
    """
    compared, _ = sentence_places(held_out, token_places(held_out), SentenceEnds.of(tokenizer))
    if not (compared & (evaluation_labels(held_out) != IGNORED)).any():
        raise ValueError(
            f"{folder}: no masked token stands in a document of two sentences or more, so there is "
            "nothing to compare; leave --sentences out."
        )


def alone_to_among(sentences: Report) -> str:
    """A line: the accuracy alone as a share of that among others, on the same tokens."""
    alone, among = sentences.sides.values()
    share = ratio(alone.right, among.right, alone.documents)
    return (
        f"Alone, a sentence has {percent(share)} of the accuracy that its words have among others."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=".", help="its folder, with the rows' tokenizer")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="held-out row sets")
    parser.add_argument("--train", type=Path, help="rows for the n-grams to count")
    parser.add_argument(
        "--sentences", action="store_true", help="compare sentences alone and among others"
    )
    arguments = parser.parse_args()
    with readable_errors("model_report"):
        tokenizer_file = Path(arguments.model, "tokenizer.json")
        opened = [open_with_tokenizer(folder, tokenizer_file) for folder in arguments.eval]
        sets, tokenizer = [rows for rows, _ in opened], opened[0][1]
        for folder, rows in zip(arguments.eval, sets, strict=True):
            if (evaluation_labels(rows) == IGNORED).all():
                raise ValueError(f"{folder}: no token is masked; check that the rows hold text.")
            if arguments.sentences:
                check_sentences(folder, rows, tokenizer)
        if arguments.train:
            train, _ = open_with_tokenizer(arguments.train, tokenizer_file)
        sides = {
            "model": [predict(arguments.model, rows, evaluation_collator(rows)) for rows in sets]
        }
        if arguments.train:
            sides["5-gram"] = ngram_baseline.evaluate(train, sets, ngram_baseline.MAX_ORDER)
            sides["unigram"] = ngram_baseline.evaluate(train, sets, 1)
        for number, (folder, rows) in enumerate(zip(arguments.eval, sets, strict=True)):
            predictions = {side: each[number] for side, each in sides.items()}
            on_rows = report(folder.name, rows, tokenizer, predictions)
            print(f"{on_rows.table()}\n\n{on_rows.by_character(tokenizer)}\n")
            if arguments.sentences:
                title = f"{folder.name}, sentences"
                among = sides["model"][number]
                on_sentences = report_on_sentences(title, rows, tokenizer, among, arguments.model)
                print(f"{on_sentences.table()}\n\n{alone_to_among(on_sentences)}\n")
    print("± is one standard error; documents are taken as independent.")


if __name__ == "__main__":
    main()
