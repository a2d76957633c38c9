"""`pipeline("question-answering")` for Chinese ModernBERT.

transformers removed its own pipeline in version 5.3 and has no other for extractive answers. The
configuration of `ChineseModernBertForQuestionAnswering` names this one, so that
`pipeline("question-answering", folder, trust_remote_code=True)` finds it.
"""

import types
from dataclasses import dataclass

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

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


@dataclass(frozen=True)
class Context:
    """A text in which answers are looked for.

    Attributes:
        text: the text.
        ids: its tokens.
        firsts: (characters,) the first token of each character.
        spans: (characters, 2) where each one starts and ends in the text. Characters that share a
            token count as one.
    """

    text: str
    ids: list[int]
    firsts: np.ndarray
    spans: np.ndarray


_ARGUMENTS = ("doc_stride", "handle_impossible_answer", "max_answer_len", "max_seq_len", "top_k")


def check_question(item) -> None:
    """Raises ValueError unless it is {"question", "context"}, texts that are not blank."""
    for name in ("question", "context"):
        text = item.get(name) if isinstance(item, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a text that is not empty or blank, got {text!r}.")
        check_text(text, name)


class ChineseModernBertQuestionAnsweringPipeline(ChunkPipeline):
    """Finds the answer to a question in a text of any length.

    A text that is longer than `max_seq_len` is read in windows that overlap. A candidate is every
    span of the text that has at most `max_answer_len` tokens and lies within a window. Its logit is
    the sum of its first token's start logit and its last token's end logit, taken from the window
    that shows most text around it. Its score is its probability among all candidates, so neither
    scores nor their order depend on how many answers are asked for.

    No answer cuts a character: tokens that spell one character in bytes, or the parts of a joined
    emoji, count as one token, and the probabilities of all spans that begin and end in the same
    characters are added up.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, inputs=None, *, question=None, context=None, **kwargs):
        """Answers questions.

        Args:
            inputs: {"question": …, "context": …}, or a list, a generator or a data set of them.
            question, context: the same as arguments; several questions may share one context.
            top_k: the number of answers, most probable first (1).
            max_answer_len: tokens of the longest answer (30).
            max_seq_len: tokens of a window, question included (by default as many as model and
                tokenizer take).
            doc_stride: tokens that neighboring windows share (128, and at most half a window).
            handle_impossible_answer: whether "no answer" ("", 0, 0) is a candidate (False).

        Returns:
            For each question {"score", "start", "end", "answer"}, a list of them where `top_k` is
            not 1. `start` and `end` count characters: `context[start:end] == answer`.

        Raises:
            ValueError: on a question or context that is missing or blank, on a question that
                fills `max_seq_len`, on a `top_k`, `max_answer_len` or `doc_stride` that is too
                small, or on another argument.
        """
        if inputs is None:
            if isinstance(question, (list, tuple)):
                contexts = [context] * len(question) if isinstance(context, str) else context
                inputs = [
                    {"question": one, "context": its}
                    for one, its in zip(question, contexts, strict=True)
                ]
            else:
                inputs = {"question": question, "context": context}
        if not isinstance(inputs, (dict, list, types.GeneratorType, torch.utils.data.Dataset)):
            inputs = list(inputs)  # a tuple, or a data set of the package datasets
        if isinstance(inputs, (dict, list)):  # all of them before the first is answered
            for item in inputs if isinstance(inputs, list) else [inputs]:
                check_question(item)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if unknown := sorted(kwargs.keys() - set(_ARGUMENTS)):
            raise ValueError(f"{unknown[0]} is unknown; there are {', '.join(_ARGUMENTS)}.")
        for key, least in (("top_k", 1), ("max_answer_len", 1), ("doc_stride", 0)):
            if kwargs.get(key, least) < least:
                raise ValueError(f"{key} must be at least {least}, got {kwargs[key]}.")
        preprocess = {
            key: kwargs.pop(key) for key in ("max_seq_len", "doc_stride") if key in kwargs
        }
        return preprocess, {}, kwargs

    def preprocess(self, inputs, max_seq_len=None, doc_stride=None):
        check_question(inputs)
        max_seq_len = max_seq_len or longest_input(self.tokenizer, self.model.config)
        question = self.tokenizer(inputs["question"], add_special_tokens=False)["input_ids"]
        size = max_seq_len - len(question) - 3  # [CLS] question [SEP] context [SEP]
        if size < 1:
            raise ValueError(
                f"the question's {len(question)} tokens leave no room for the context in windows "
                f"of max_seq_len {max_seq_len}. Raise max_seq_len, or shorten the question."
            )
        text = inputs["context"]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        firsts, spans = group_spans(encoded["offset_mapping"], character_starts(text))
        context = Context(text, ids, firsts, spans)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        shared = min(128, size // 2) if doc_stride is None else min(doc_stride, size - 1)
        for start, stop in overlapping_windows(len(ids), size, shared):
            pair = [cls, *question, sep, *ids[start:stop], sep]
            yield {
                "input_ids": torch.tensor([pair]),
                "attention_mask": torch.ones(1, len(pair), dtype=torch.long),
                "window": (start, stop),
                "context": context,
                "is_last": stop == len(ids),
            }

    def _forward(self, model_inputs):
        outputs = self.model(
            input_ids=model_inputs["input_ids"], attention_mask=model_inputs["attention_mask"]
        )
        return {
            "start_logits": outputs.start_logits,
            "end_logits": outputs.end_logits,
            **{name: model_inputs[name] for name in model_inputs if name != "input_ids"},
        }

    def postprocess(
        self, windows, top_k=1, max_answer_len=30, handle_impossible_answer=False
    ) -> dict | list[dict]:
        context = windows[0]["context"]
        characters = len(context.firsts)
        # [c, n]: the span from character c to character c + n.
        logits = np.full((characters, min(max_answer_len, characters)), -np.inf)
        most = np.full(logits.shape, -1)
        no_answer = np.inf
        for window in windows:
            real = window["attention_mask"][0].bool()
            first, last = (
                window[f"{side}_logits"][0][real].double().numpy() for side in ("start", "end")
            )
            no_answer = min(no_answer, first[0] + last[0])  # at [CLS]
            start, stop = window["window"]
            inside = slice(start - stop - 1, -1)  # the context, which the last [SEP] follows
            rows, found, room = score_spans(
                first[inside], last[inside], (start, stop), context, logits.shape[1]
            )
            better = room > most[rows, : found.shape[1]]
            most[rows, : found.shape[1]][better] = room[better]
            logits[rows, : found.shape[1]][better] = found[better]
        candidates = np.append(logits, no_answer if handle_impossible_answer else -np.inf)
        best = np.argsort(-candidates, kind="stable")[:top_k]
        best = best[np.isfinite(candidates[best])]
        scores = np.exp(candidates[best] - np.logaddexp.reduce(candidates))
        answers = []
        for index, score in zip(best.tolist(), scores.tolist(), strict=True):
            start = end = 0
            if index < logits.size:
                begin, more = divmod(index, logits.shape[1])
                start, end = int(context.spans[begin, 0]), int(context.spans[begin + more, 1])
            answer = context.text[start:end]
            answers.append({"score": score, "start": start, "end": end, "answer": answer})
        return answers[0] if top_k == 1 else answers


def score_spans(first, last, window, context, longest):
    """The logits of all spans of a window.

    Args:
        first, last: (tokens,) logits of an answer's first and last token.
        window: the (start, stop) of these tokens in the context.
        context: the text and its characters.
        longest: characters of the longest span.

    Returns:
        Three things: the slice of the context's characters that the window shows; (characters,
        lengths) logits, where `[c, n]` is the span from character c to c + n; and, of the same
        shape, how much context the window gives the span on its shorter side, in tokens, -1 where
        the window ends before the span does.
    """
    character = np.searchsorted(context.firsts, np.arange(*window), side="right") - 1
    begins = np.flatnonzero(np.diff(character, prepend=-1))
    ends = np.append(begins[1:], len(character)) - 1
    count = len(begins)
    # A span's probability is the sum over all pairs of a token of its first character and a token
    # of its last one, the second not before the first: all pairs, but within a single character.
    within = first + last
    for place in np.flatnonzero(ends > begins):
        tokens = slice(begins[place], ends[place] + 1)
        within[tokens] = first[tokens] + np.logaddexp.accumulate(last[tokens][::-1])[::-1]
    start_logits = np.logaddexp.reduceat(first, begins)
    end_logits = np.logaddexp.reduceat(last, begins)
    ending = np.arange(count)[:, None] + np.arange(min(longest, count))
    cut, ending = ending >= count, ending.clip(max=count - 1)
    logits = start_logits[:, None] + end_logits[ending]
    logits[:, 0] = np.logaddexp.reduceat(within, begins)
    left, right = context_in_window(*window, len(context.ids))
    room = np.minimum(left[begins][:, None], right[ends][ending])
    room[cut] = -1
    return slice(character[0], character[0] + count), logits, room
