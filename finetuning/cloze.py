"""What a masked language model knows without any fine-tuning: idioms in blanks, pseudo-perplexity.

    python -m finetuning.cloze --model . --data FOLDER

FOLDER/fewclue/chid holds ChID as FewCLUE gives it. The blank of a text becomes as many [MASK] as an
idiom has tokens; the idiom's score is the sum of its tokens' log-probabilities there. Since common
idioms score high everywhere, the probe also subtracts what an idiom scores without a text
("calibrated"), and, as idioms have one to four tokens, divides by their number ("mean").

Pseudo-perplexity masks the tokens of a text one by one (Salazar et al. 2020, arXiv:1910.14659). It
is given per character, so that tokenizers can be compared.
"""

import argparse
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from finetuning.choice_data import BLANK, read_chid
from finetuning.choices import ChoiceDecoding, around_blank, cut_around, decode
from finetuning.spans import frame
from pretraining.command import readable_errors
from pretraining.files import write_json


@dataclass(frozen=True)
class MaskedRow:
    """One input of the model and what is asked about it.

    Attributes:
        ids: the input, with special tokens.
        places: where its masks are that count.
        fills: the ids to score at these places, and a key for each of them.
    """

    ids: list[int]
    places: list[int]
    fills: dict[tuple, list[int]]


class MaskedScorer:
    """Log-probabilities that a masked language model gives to tokens at masks.

    Args:
        model: any model of `AutoModelForMaskedLM`.
        tokenizer: its tokenizer; it must have a mask token.
        max_length: tokens of an input, special tokens included; more are cut around the blank.
        batch_size: inputs at a time.

    Raises:
        ValueError: if the tokenizer has no mask token.
    """

    def __init__(self, model, tokenizer, max_length: int = 64, batch_size: int = 16):
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask token; the probe needs a masked language "
                "model."
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_length, self.batch_size = max_length, batch_size
        self._frame = frame(tokenizer, 1)

    def score_choices(self, examples) -> tuple[list[list[float]], list[list[int]]]:
        """The scores of each example's choices in its blank, and how many tokens they have."""
        rows, lengths = [], []
        for number, example in enumerate(examples):
            left, right = around_blank(example, self.tokenizer)
            fills = [self._ids(choice) for choice in example["choices"]]
            rows += self._rows(number, left, right, fills)
            lengths.append(list(map(len, fills)))
        found = self._log_probabilities(rows)
        scores = [
            [found[number, index] for index in range(len(counts))]
            for number, counts in enumerate(lengths)
        ]
        return scores, lengths

    def score_alone(self, texts) -> dict[str, float]:
        """What each text scores with nothing around it."""
        texts = sorted(set(texts))
        found = self._log_probabilities(self._rows(0, [], [], list(map(self._ids, texts))))
        return {text: found[0, index] for index, text in enumerate(texts)}

    def pseudo_log_likelihoods(self, texts) -> list[float]:
        """The sum of the log-probabilities of each text's tokens, each masked by itself."""
        rows = []
        for number, text in enumerate(texts):
            framed = self._frame.build(self._ids(text)[: self.max_length - self._frame.size])
            first, last = len(self._frame.parts[0]), len(self._frame.parts[1])
            for place in range(first, len(framed["input_ids"]) - last):
                ids = list(framed["input_ids"])
                token, ids[place] = ids[place], self.tokenizer.mask_token_id
                rows.append(MaskedRow(ids, [place], {(number, place): [token]}))
        sums = [0.0] * len(texts)
        for (number, _), score in self._log_probabilities(rows).items():
            sums[number] += score
        return sums

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _rows(self, number: int, left: list[int], right: list[int], fills) -> list[MaskedRow]:
        """One row for each length of the fills."""
        by_length = defaultdict(dict)
        for index, fill in enumerate(fills):
            by_length[len(fill)][number, index] = fill
        rows = []
        for length, those in by_length.items():
            room = self.max_length - self._frame.size - length
            before, after = cut_around(len(left), len(right), room)
            text = left[len(left) - before :]
            text = [*text, *[self.tokenizer.mask_token_id] * length, *right[:after]]
            start = self._frame.start_of(0) + before
            ids = self._frame.build(text)["input_ids"]
            rows.append(MaskedRow(ids, list(range(start, start + length)), those))
        return rows

    @torch.no_grad()
    def _log_probabilities(self, rows: list[MaskedRow]) -> dict[tuple, float]:
        """The score of every fill of the rows, by its key."""
        found = {}
        rows = sorted(rows, key=lambda row: len(row.ids))
        for start in tqdm(range(0, len(rows), self.batch_size), unit="batch", leave=False):
            batch = rows[start : start + self.batch_size]
            ids = {"input_ids": [row.ids for row in batch]}
            # Places are counted from the left.
            inputs = self.tokenizer.pad(ids, padding_side="right", return_tensors="pt")
            logits = self.model(**inputs.to(self.model.device)).logits
            for row, scores in zip(batch, logits, strict=True):
                chosen = scores[row.places].float().log_softmax(-1).cpu()
                for key, fill in row.fills.items():
                    found[key] = float(chosen[range(len(fill)), fill].sum())
        return found


@dataclass(frozen=True)
class ClozeResult:
    """What the probe found.

    Attributes:
        examples: blanks that were answered.
        chance: the accuracy of guessing.
        plain, mean, calibrated: accuracy by the sum of the log-probabilities, by their mean, and by
            the sum minus that of the idiom alone. Blanks of one group are answered together.
        standard_error: of the largest of these accuracies.
        texts: texts whose pseudo-perplexity was measured, with the right idioms.
        pseudo_perplexity: per character.
    """

    examples: int
    chance: float
    plain: float
    mean: float
    calibrated: float
    standard_error: float
    texts: int
    pseudo_perplexity: float


def probe(scorer: MaskedScorer, examples: list[dict], texts: int) -> ClozeResult:
    """Runs the probe on examples of `read_chid` with labels; pseudo-perplexity on the first
    `texts` of them."""
    scores, lengths = scorer.score_choices(examples)
    alone = scorer.score_alone(choice for example in examples for choice in example["choices"])
    ways = {"plain": scores, "mean": [], "calibrated": []}
    for example, row, counts in zip(examples, scores, lengths, strict=True):
        ways["mean"].append([score / n for score, n in zip(row, counts, strict=True)])
        ways["calibrated"].append(
            [score - alone[idiom] for score, idiom in zip(row, example["choices"], strict=True)]
        )
    groups = defaultdict(list)
    for number, example in enumerate(examples):
        groups[example["group"]].append(number)
    decoding = ChoiceDecoding([len(row) for row in scores], list(groups.values()), {})
    labels = [example["label"] for example in examples]
    accuracy = {
        name: sum(map(int.__eq__, decode(way, decoding), labels)) / len(labels)
        for name, way in ways.items()
    }
    share = max(accuracy.values())
    return ClozeResult(
        examples=len(examples),
        chance=sum(1 / len(row) for row in scores) / len(scores),
        **accuracy,
        standard_error=math.sqrt(share * (1 - share) / len(examples)),
        texts=min(texts, len(examples)),
        pseudo_perplexity=pseudo_perplexity(scorer, examples[:texts]),
    )


def pseudo_perplexity(scorer: MaskedScorer, examples: list[dict]) -> float:
    """exp of the mean negative log-probability per character of the texts, blanks filled.

    A text longer than an input counts as far as it fits.
    """
    room = scorer.max_length - scorer.tokenizer.num_special_tokens_to_add()
    texts = []
    for example in examples:
        filled = example["text"].replace(BLANK, example["choices"][example["label"]])
        encoded = scorer.tokenizer(filled, add_special_tokens=False, return_offsets_mapping=True)
        texts.append(filled[: encoded["offset_mapping"][:room][-1][1]])
    log_likelihood = sum(scorer.pseudo_log_likelihoods(texts))
    return math.exp(-log_likelihood / sum(map(len, texts)))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.cloze",
        description="Idioms in blanks and pseudo-perplexity, without fine-tuning.",
    )
    parser.add_argument("--model", default=".", help="folder or Hub name of a masked model (.)")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds fewclue/chid")
    parser.add_argument("--split", default="test_public", help="file of fewclue/chid (test_public)")
    parser.add_argument("--limit", type=int, help="number of examples (all)")
    parser.add_argument(
        "--texts", type=int, default=50, help="texts whose pseudo-perplexity is measured (50)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    from transformers import AutoModelForMaskedLM

    from finetuning.models import open_tokenizer

    options = parse(arguments)
    file = options.data / "fewclue" / "chid" / f"{options.split}.json"
    with readable_errors("cloze"):
        for name in ("limit", "texts"):
            if (value := getattr(options, name)) is not None and value < 1:
                raise ValueError(f"--{name}: a number above 0 expected, not {value}")
        examples = read_chid(file)[0][: options.limit]
        if unlabeled := sum(example["label"] is None for example in examples):
            raise ValueError(f"{file}: {unlabeled} examples have no answer; choose another --split")
        tokenizer = open_tokenizer(options.model)
        model = AutoModelForMaskedLM.from_pretrained(options.model, trust_remote_code=True)
        scorer = MaskedScorer(model, tokenizer)
    result = probe(scorer, examples, options.texts)
    print(
        f"{options.model}: {result.examples} blanks, chance {result.chance:.1%}, plain "
        f"{result.plain:.1%}, mean {result.mean:.1%}, calibrated {result.calibrated:.1%} "
        f"(standard error {result.standard_error:.1%}); pseudo-perplexity per character "
        f"{result.pseudo_perplexity:.2f} on {result.texts} texts"
    )
    if options.output:
        write_json(options.output, {"model": str(options.model), **asdict(result)})


if __name__ == "__main__":
    main()
