"""Metrics of the tasks, as `evaluate.Metric` classes that need no network.

    EntityF1(keep_in_memory=True).compute(predictions=tags, references=gold_tags)

All values are shares from 0 to 1, as in `evaluate`'s own metrics.
"""

import math

try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError(
        f'fine-tuning needs the package {error.name}: pip install ".[finetune]"'
    ) from error

from finetuning import cmrc_rules

_CLUE = "https://github.com/CLUEbenchmark/CLUE"


def _info(description: str, citation: str = _CLUE, **columns) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation=citation, features=datasets.Features(columns)
    )


_TEXT = datasets.Value("string")
_TEXTS = datasets.List(_TEXT)


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their reference. Columns: labels as texts."""

    def _info(self):
        return _info(self.__doc__, predictions=_TEXT, references=_TEXT)

    def _compute(self, predictions, references):
        right = sum(map(str.__eq__, predictions, references))
        return {"accuracy": right / len(references)}


class BinaryF1AndAuc(evaluate.Metric):
    """F1 of the class "1" and the area under the ROC curve, for classes of unequal size (AFQMC).

    Columns: `predictions` and `references`, "0" or "1"; `scores`, a number that grows with the
    probability of "1".
    """

    def _info(self):
        columns = {"predictions": _TEXT, "references": _TEXT, "scores": datasets.Value("float64")}
        return _info(self.__doc__, **columns)

    def _compute(self, predictions, references, scores):
        """Raises ValueError on labels other than "0" and "1", or if only one of them occurs."""
        from sklearn.metrics import f1_score, roc_auc_score

        if set(references) != {"0", "1"}:
            raise ValueError(
                'F1 and AUC need references of both classes, "0" and "1", got '
                f"{sorted(set(references))}; score this set by accuracy, or give it both classes."
            )
        return {
            "f1": f1_score(references, predictions, pos_label="1", zero_division=0),
            "auc": roc_auc_score([label == "1" for label in references], scores),
        }


class EntityF1(evaluate.Metric):
    """Precision, recall and F1 of entities whose span and label are both right, over all of them;
    `macro_f1` is the mean of the F1 of each label, as CLUENER2020's makers report it.

    Columns: lists of tags of characters, "O", "B-label" or "I-label", as `character_tags` makes
    them.
    """

    def _info(self):
        citation = "https://github.com/chakki-works/seqeval"
        return _info(self.__doc__, citation, predictions=_TEXTS, references=_TEXTS)

    def _compute(self, predictions, references):
        from seqeval.metrics import f1_score, precision_score, recall_score
        from seqeval.scheme import IOB2

        strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        # seqeval's mean over classes is NaN where neither side has an entity.
        macro_f1 = float(f1_score(references, predictions, average="macro", **strict))
        return {
            "precision": float(precision_score(references, predictions, **strict)),
            "recall": float(recall_score(references, predictions, **strict)),
            "f1": float(f1_score(references, predictions, **strict)),
            "macro_f1": 0.0 if math.isnan(macro_f1) else macro_f1,
        }


class AnswerScores(evaluate.Metric):
    """Exact match and F1 of answers by the official rules of CMRC2018, which DRCD shares.

    Columns: `predictions`, a text each; `references`, the right answers of each.
    """

    def _info(self):
        citation = "https://github.com/ymcui/cmrc2018"
        return _info(self.__doc__, citation, predictions=_TEXT, references=_TEXTS)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {
            "exact_match": sum(cmrc_rules.exact_match(*pair) for pair in pairs) / len(pairs),
            "f1": sum(cmrc_rules.f1(*pair) for pair in pairs) / len(pairs),
        }


def character_tags(length: int, entities) -> list[str]:
    """The tags of a text's characters.

    Args:
        length: the characters of the text.
        entities: [start, end, label] each, the end exclusive.

    Raises:
        ValueError: if entities overlap or reach beyond the text.
    """
    tags = ["O"] * length
    for start, end, label in entities:
        if not 0 <= start < end <= length or any(tag != "O" for tag in tags[start:end]):
            raise ValueError(
                f"the entity [{start}, {end}, {label!r}] overlaps another one or does not lie in "
                f"the text of {length} characters; tags of characters cannot show it."
            )
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags
