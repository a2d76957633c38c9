"""What a masked-language model achieves on held-out rows, beside what counting alone does.

    python -m pretraining.model_report --model . --eval rows/valid-512 --train rows/train-512

Prints masked accuracy and bits per character as Markdown: over all, by domain where the rows keep
domains apart, and by place in the document. 15 % of the tokens are masked, whole words, always the
same. With `--train`, a unigram and a 5-gram that counted those rows name the same tokens.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Trainer, TrainingArguments

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.encoding import open_with_tokenizer
from pretraining.data.rows import Rows
from pretraining.data.tokens import token_lengths
from pretraining.run.evaluation import (
    EvaluationRows,
    MaskedLanguageModelingMetrics,
    evaluation_collator,
    reduce_logits,
)
from pretraining.run.ngram_baseline import MAX_ORDER, evaluate

BITS, ACCURACY = "bits_per_character", "masked_accuracy"
BATCH_TOKENS = 4096


def evaluate_model(folder: str, held_out: Rows, tokenizer: Tokenizer) -> dict[str, float]:
    """The figures of `MaskedLanguageModelingMetrics` for a model folder, computed in fp32."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=ChineseModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32),
            args=TrainingArguments(
                output_dir=scratch,
                per_device_eval_batch_size=max(1, BATCH_TOKENS // held_out.seq_len),
                remove_unused_columns=False,
                report_to="none",
            ),
            data_collator=evaluation_collator(held_out),
            eval_dataset=EvaluationRows(held_out),
            compute_metrics=MaskedLanguageModelingMetrics(token_lengths(tokenizer), held_out),
            preprocess_logits_for_metrics=reduce_logits,
        )
        metrics = trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def table(sides: dict[str, dict[str, float]]) -> str:
    """Markdown: a line for all rows, for each domain, and for each band of places.

    Args:
        sides: {column: figures}; all have the same keys.
    """
    keys = [key.removeprefix(BITS) for key in next(iter(sides.values())) if key.startswith(BITS)]
    domains = sorted(key for key in keys if key and not key.startswith("/tokens "))
    places = [key for key in keys if key.startswith("/tokens ")]
    heads = [
        *(f"masked accuracy, {side}" for side in sides),
        *(f"bits per character, {side}" for side in sides),
    ]
    lines = [f"| held-out text | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for key in ("", *domains, *places):
        cells = [f"{100 * figures[ACCURACY + key]:.1f} %" for figures in sides.values()]
        cells += [f"{figures[BITS + key]:.2f}" for figures in sides.values()]
        lines.append(f"| {key.removeprefix('/') or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=".", help="its folder, with the rows' tokenizer")
    parser.add_argument("--eval", type=Path, required=True, help="held-out rows")
    parser.add_argument("--train", type=Path, help="rows for the n-grams to count")
    arguments = parser.parse_args()
    try:
        tokenizer_file = Path(arguments.model, "tokenizer.json")
        held_out, tokenizer = open_with_tokenizer(arguments.eval, tokenizer_file)
        if arguments.train:
            train, _ = open_with_tokenizer(arguments.train, tokenizer_file)
        sides = {"model": evaluate_model(arguments.model, held_out, tokenizer)}
    except (OSError, ValueError) as error:
        sys.exit(f"model_report: {error}")
    if arguments.train:
        sides["5-gram"] = evaluate(train, held_out, tokenizer, MAX_ORDER)
        sides["unigram"] = evaluate(train, held_out, tokenizer, 1)
    print(table(sides))


if __name__ == "__main__":
    main()
