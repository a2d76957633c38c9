"""Answers as spans of a context: examples to a model's inputs, its logits to answers.

A context that does not fit beside its question is read in windows. In training, a window without
the whole answer points to its first token. A candidate's score is its probability within its
window, first token and last token independent, so that windows can be compared.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from finetuning.spans import Tokens, encode, frame, windows


@dataclass(frozen=True)
class AnswerSettings:
    """How questions and contexts become inputs.

    Attributes:
        max_length: tokens of an input: special tokens, question and a window of the context.
        stride: tokens from the start of one window to the start of the next.
        borders: see `finetuning.spans.encode`, for the context.
        longest_answer: characters of the longest answer that is predicted.
    """

    max_length: int = 512
    stride: int = 128
    borders: str = "words"
    longest_answer: int = 64


@dataclass(frozen=True)
class AnswerDecoding:
    """What `decode` needs besides the logits.

    Attributes:
        contexts: the text of each example's context.
        tokens: the tokens of each example's context.
        rows: (example, start, stop, offset, length) of each row of the data set: which tokens of
            which context, where in the row they begin, and how long the row is.
        inexact: examples that are left out in training, and examples whose answer (the one that is
            trained on; when scored, each of them) no run of tokens stands for, or is longer than
            any that is predicted, by reason.
        longest_answer: see `AnswerSettings`.
    """

    contexts: list[str]
    tokens: list[Tokens]
    rows: list[tuple[int, int, int, int, int]]
    inexact: Counter
    longest_answer: int


def features(examples, tokenizer, settings, training: bool) -> tuple[list[dict], AnswerDecoding]:
    """Examples {"context", "question", "answers"} as a data set of inputs.

    Args:
        training: whether rows get `start_positions` and `end_positions`, those of the first answer
            that has a start. Examples without one are left out and counted.

    Raises:
        ValueError: if a question leaves no room for its context; the message names the example.
    """
    framing = frame(tokenizer, 2)
    contexts, texts, rows, data, inexact = [], [], [], [], Counter()
    encoded: dict[str, Tokens] = {}  # several questions share one context
    for example in examples:
        context = example["context"]
        spans = _spans(example)
        if training and not spans:
            inexact["no answer at its offset"] += 1
            continue
        if context not in encoded:
            encoded[context] = encode(context, tokenizer, settings.borders)
        tokens = encoded[context]
        if not len(tokens):
            raise ValueError(
                f"example {example['id']!r}: the tokenizer leaves nothing of 'context'."
            )
        question = encode(example["question"], tokenizer, "plain").ids
        size = settings.max_length - framing.size - len(question)
        if size < 1:
            raise ValueError(
                f"example {example['id']!r}: the question's {len(question)} tokens leave no room "
                f"for the context in {settings.max_length}; raise max_length."
            )
        # One answer is trained on; when scored, any of them will do.
        spans = spans[:1] if training else spans
        if spans and not any(tokens.representable(*span) for span in spans):
            inexact["ends within a token"] += 1
        if spans and min(end - start for start, end in spans) > settings.longest_answer:
            inexact[f"longer than {settings.longest_answer} characters"] += 1
        covered = tokens.cover(*spans[0]) if training else None
        offset = framing.start_of(1, question)
        for start, stop in windows(len(tokens), size, min(settings.stride, size)):
            row = framing.build(question, tokens.ids[start:stop])
            if training:
                inside = covered is not None and start <= covered[0] and covered[1] < stop
                positions = [offset + token - start for token in covered] if inside else (0, 0)
                row["start_positions"], row["end_positions"] = positions
            rows.append((len(texts), start, stop, offset, len(row["input_ids"])))
            data.append(row)
        contexts.append(context)
        texts.append(tokens)
    return data, AnswerDecoding(contexts, texts, rows, inexact, settings.longest_answer)


def _spans(example: dict) -> list[tuple[int, int]]:
    return [
        (answer["start"], answer["start"] + len(answer["text"]))
        for answer in example.get("answers") or ()
        if answer["start"] is not None
    ]


def decode(logits, decoding: AnswerDecoding) -> list[dict]:
    """The best answer to each question: {"text", "start", "score"}.

    `start` counts characters of the context, `score` is a probability.

    Args:
        logits: (start logits, end logits), each (rows, positions), padded on the right, or lists.
    """
    best = [{"text": "", "start": 0, "score": -1.0} for _ in decoding.contexts]
    for begin, finish, row in zip(*logits, decoding.rows, strict=True):
        number, start, stop, offset, length = row
        tokens = decoding.tokens[number]
        inside = slice(offset, offset + stop - start)
        first = _log_softmax(np.asarray(begin, dtype=np.float64)[:length])[inside]
        last = _log_softmax(np.asarray(finish, dtype=np.float64)[:length])[inside]
        spans = tokens.spans[start:stop]
        # For each first token only the last ones within reach, far fewer than a window has.
        reach = np.searchsorted(spans[:, 1], spans[:, 0] + decoding.longest_answer, side="right")
        firsts = np.arange(len(spans))
        lasts = firsts[:, None] + np.arange(max(1, (reach - firsts).max()))
        capped = np.minimum(lasts, len(spans) - 1)
        fits = (lasts < reach[:, None]) & (spans[capped, 1] > spans[firsts, 0][:, None])
        scores = np.where(fits, first[:, None] + last[capped], -np.inf)
        one, ahead = np.unravel_index(scores.argmax(), scores.shape)
        score = float(np.exp(scores[one, ahead]))
        if score > best[number]["score"]:
            left, right = tokens.text_span(start + one, start + one + ahead)
            text = decoding.contexts[number][left:right]
            best[number] = {"text": text, "start": left, "score": score}
    return best


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)
