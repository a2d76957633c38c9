"""`pipeline("token-classification")` for Chinese ModernBERT.

transformers' own pipeline takes the text between two blanks for a word, which in Chinese is a whole
sentence. The configuration of `ChineseModernBertForTokenClassification` names this one, so that
`pipeline("token-classification", folder, trust_remote_code=True)` finds it.
"""

import itertools
import types
from dataclasses import dataclass

import numpy as np
import regex  # a requirement of transformers
import torch
from transformers.pipelines.token_classification import (
    AggregationStrategy,
    TokenClassificationPipeline,
)

try:
    from .spans_chinese_modernbert import (
        character_starts,
        check_text,
        context_in_window,
        group_spans,
        longest_input,
        overlapping_windows,
    )
except ImportError:  # imported from a checkout, where the files are not a package
    from spans_chinese_modernbert import (
        character_starts,
        check_text,
        context_in_window,
        group_spans,
        longest_input,
        overlapping_windows,
    )

NONE, FIRST, MAX, AVERAGE = (
    AggregationStrategy(name) for name in ("none", "first", "max", "average")
)

# The segmenter makes a word of each letter that is neither Han nor ASCII, full-width ones included.
# For the tokenizer, a run of them is a word.
OTHER_LETTERS = regex.compile(r"(?V1)[\p{L}\p{M}\p{N}--\p{Han}]+")


@dataclass(frozen=True)
class TextUnits:
    """The parts of a text that get a label each: characters, or words.

    Attributes:
        text: the text.
        groupings: from tokens to units, one or two steps: the first token of each character, then
            the first character of each word.
        spans: (units, 2) where each unit starts and ends in the text.
    """

    text: str
    groupings: tuple[np.ndarray, ...]
    spans: np.ndarray

    @classmethod
    def build(cls, text, offsets, characters, words=None) -> "TextUnits":
        """Takes the tokens' `offset_mapping`, and where characters and (if wanted) words start."""
        firsts, spans = group_spans(offsets, characters)
        if words is None:
            return cls(text, (firsts,), spans)
        words, word_spans = group_spans(spans, words)
        return cls(text, (firsts, words), word_spans)


class ChineseModernBertTokenClassificationPipeline(TokenClassificationPipeline):
    """Labels the tokens, or finds the entities, of texts of any length.

    It returns what transformers' `TokenClassificationPipeline` returns, and differs in this:

    - "first", "max" and "average" judge words. These are the words of `tokenizer.segment`, which
      needs rjieba and opencc; a run of letters and digits of other scripts is one word. Words that
      share a token are judged as one.
    - No character is cut. Tokens that spell one character in bytes, or the parts of a joined
      emoji, count as one: "max" and "average" combine their probabilities as they do for a word,
      the other strategies take the first token's.
    - `word` is always `text[start:end]`.
    - A text longer than the context is read in windows that overlap, with every strategy. Each
      token is judged in the window where it has most context.

    Parameters of a call, or of `pipeline`:
        aggregation_strategy: "none" (the default), "simple", "first", "max" or "average".
        ignore_labels: labels, or types of entities, that are left out (["O"]).
        stride: tokens that neighboring windows share (128, or half a window if that is less).
        is_split_into_words: whether a text is a list of words (False). "first", "max" and
            "average" then judge these words, and `start` and `end` count in the words joined by
            `delimiter` (" ").

    Raises:
        ImportError: if words are needed, and rjieba or opencc is not installed.
        ValueError: on what is no text, on an unknown strategy, or on a stride that is not smaller
            than a window.
    """

    def __call__(self, inputs, **kwargs):
        """Labels one text or a list of them, by the parameters above."""
        # transformers takes what a call does not say for False, whatever `pipeline` was told.
        of_pipeline = self._preprocess_params.get("is_split_into_words", False)
        kwargs.setdefault("is_split_into_words", of_pipeline)
        if kwargs["is_split_into_words"] and isinstance(inputs, types.GeneratorType):
            inputs = list(inputs)  # transformers reads it once to see what it holds
        return super().__call__(inputs, **kwargs)

    def check_model_type(self, supported_models):
        """Accepts every model; transformers' list holds only its own and would log an error."""

    def _sanitize_parameters(
        self,
        aggregation_strategy=None,
        ignore_labels=None,
        stride=None,
        is_split_into_words=False,
        delimiter=None,
    ):
        preprocess, postprocess = {"is_split_into_words": is_split_into_words}, {}
        if delimiter is not None:
            preprocess["delimiter"] = delimiter
        if stride is not None:
            preprocess["stride"] = stride
        if ignore_labels is not None:
            postprocess["ignore_labels"] = ignore_labels
        if aggregation_strategy is not None:
            strategy = AggregationStrategy(aggregation_strategy.lower())
            preprocess["strategy"] = postprocess["strategy"] = strategy
        return preprocess, {}, postprocess

    def preprocess(
        self, sentence, is_split_into_words=False, delimiter=" ", strategy=NONE, stride=None
    ):
        size = longest_input(self.tokenizer, self.model.config) - 2
        if stride is None:
            stride = min(128, size // 2)
        if not 0 <= stride < size:
            raise ValueError(
                f"stride {stride} must be at least 0 and less than {size}, the tokens of a window "
                "without [CLS] and [SEP]."
            )
        by_words = strategy in (FIRST, MAX, AVERAGE)
        wanted = list if is_split_into_words else str
        if not isinstance(sentence, wanted):
            raise ValueError(
                f"a text to label must be a {wanted.__name__} (is_split_into_words is "
                f"{is_split_into_words}), got {sentence!r}."
            )
        check_text("".join(sentence), "a text to label")
        if not "".join(sentence).strip():
            ids, units = [], None  # a blank text among many must not end the others
        elif is_split_into_words:
            ids, units = self._encode_words(sentence, by_words, delimiter)
        else:
            ids, units = self._encode_text(sentence, by_words)
        for start, stop in overlapping_windows(len(ids), size, stride):
            framed = [self.tokenizer.cls_token_id, *ids[start:stop], self.tokenizer.sep_token_id]
            yield {
                "input_ids": torch.tensor([framed]),
                "attention_mask": torch.ones(1, len(framed), dtype=torch.long),
                "window": (start, stop),
                "units": units,
                "is_last": stop == len(ids),
            }

    def _encode_text(self, text, by_words: bool) -> tuple[list[int], TextUnits]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        words = self._word_starts(text) if by_words else None
        offsets, characters = encoded["offset_mapping"], character_starts(text)
        return encoded["input_ids"], TextUnits.build(text, offsets, characters, words)

    def _word_starts(self, text: str) -> set[int]:
        try:
            starts = {start for _, start, _ in self.tokenizer.segment(text)}
        except ImportError as error:
            raise ImportError(
                f'{error}. Or choose the aggregation_strategy "simple" or "none", which need no '
                "words."
            ) from error
        for run in OTHER_LETTERS.finditer(text):
            starts.difference_update(range(run.start() + 1, run.end()))
        return starts

    def _encode_words(self, words, by_words: bool, delimiter: str) -> tuple[list[int], TextUnits]:
        encoded = self.tokenizer(
            words, is_split_into_words=True, add_special_tokens=False, return_offsets_mapping=True
        )
        lengths = (len(word) + len(delimiter) for word in words)
        starts = list(itertools.accumulate(lengths, initial=0))
        offsets = [
            (starts[word] + start, starts[word] + end)
            for word, (start, end) in zip(
                encoded.word_ids(), encoded["offset_mapping"], strict=True
            )
        ]
        characters = {
            start + place
            for start, word in zip(starts[:-1], words, strict=True)
            for place in character_starts(word)
        }
        units = TextUnits.build(
            delimiter.join(words), offsets, characters, set(starts) if by_words else None
        )
        return encoded["input_ids"], units

    def _forward(self, model_inputs):
        outputs = self.model(
            input_ids=model_inputs["input_ids"], attention_mask=model_inputs["attention_mask"]
        )
        kept = {name: model_inputs[name] for name in model_inputs if name != "input_ids"}
        return {"logits": outputs.logits, **kept}

    def postprocess(self, all_outputs, strategy=NONE, ignore_labels=("O",)):
        units = all_outputs[0]["units"]
        if units is None:
            return []
        scores = self._token_scores(all_outputs)
        for firsts in units.groupings:
            scores = combine_scores(scores, firsts, strategy)
        entities = [
            {
                "entity": self.model.config.id2label[label],
                "score": score,
                "word": units.text[start:end],
                "start": start,
                "end": end,
            }
            for label, score, (start, end) in zip(
                scores.argmax(-1).tolist(),
                scores.max(-1).tolist(),
                units.spans.tolist(),
                strict=True,
            )
        ]
        if strategy == NONE:
            for entity, first in zip(entities, units.groupings[0].tolist(), strict=True):
                entity["index"] = first + 1  # in the sequence that begins with [CLS]
        else:
            entities = self.group_entities(entities)
            for entity in entities:
                entity["score"] = float(entity["score"])
                entity["word"] = units.text[entity["start"] : entity["end"]]
        key = "entity" if strategy == NONE else "entity_group"
        return [entity for entity in entities if entity[key] not in ignore_labels]

    def _token_scores(self, all_outputs) -> np.ndarray:
        """(tokens, labels): each token's probabilities where it has most context."""
        tokens = all_outputs[-1]["window"][1]
        scores = np.empty((tokens, self.model.config.num_labels), dtype=np.float32)
        most = np.full(tokens, -1)
        for output in all_outputs:
            start, stop = output["window"]
            logits = output["logits"][0][output["attention_mask"][0].bool()][1:-1]
            context = np.minimum(*context_in_window(start, stop, tokens))
            better = context > most[start:stop]
            most[start:stop][better] = context[better]
            scores[start:stop][better] = logits.float().softmax(-1).numpy()[better]
        return scores


def combine_scores(scores: np.ndarray, firsts: np.ndarray, strategy) -> np.ndarray:
    """Probabilities (parts, labels) become those of groups of parts (groups, labels).

    Args:
        scores: probabilities of the parts.
        firsts: (groups,) the first part of each group.
        strategy: "average" takes the mean over a group, "max" the part that is surest of its
            label, every other strategy the first part.
    """
    if strategy == AVERAGE:
        sizes = np.diff(firsts, append=len(scores))
        return np.add.reduceat(scores, firsts) / sizes[:, None]
    if strategy == MAX:
        best = scores.max(-1)
        borders = [*firsts.tolist(), len(scores)]
        firsts = [a + best[a:b].argmax() for a, b in itertools.pairwise(borders)]
    return scores[firsts]
