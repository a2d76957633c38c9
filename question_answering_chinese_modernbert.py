"""`pipeline("question-answering")` for Chinese ModernBERT.

transformers removed its own in version 5.3 and has no other for extractive answers. A folder of
`ChineseModernBertForQuestionAnswering` names this one, so `pipeline("question-answering", folder,
trust_remote_code=True)` finds it.
"""

import torch
from transformers.pipelines.base import ChunkPipeline


class ChineseModernBertQuestionAnsweringPipeline(ChunkPipeline):
    """Finds the answer to a question in a text of any length.

    A text that is longer than `max_seq_len` is read in overlapping pieces. Every span of at most
    `max_answer_len` tokens in any piece is a candidate; its score is its probability among all of
    them, from the sum of its first and its last token's logit.
    """

    default_input_names = "question,context"

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, inputs=None, *, question=None, context=None, **kwargs):
        """Answers questions.

        Args:
            inputs: {"question": …, "context": …}, or a list of them.
            question, context: the same as arguments; several questions may share one context.
            top_k: answers to give, the likeliest first (1).
            max_answer_len: tokens of the longest answer (30).
            max_seq_len: tokens of a piece, question included (the model's context).
            doc_stride: tokens that neighbouring pieces share (128).
            handle_impossible_answer: whether "no answer" ("", 0, 0) is a candidate (False).

        Returns:
            For each question {"score", "start", "end", "answer"}, a list of them where `top_k` is
            not 1. `start` and `end` count characters: `context[start:end] == answer`.

        Raises:
            ValueError: on an empty question or context, or one that is missing.
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
        for item in inputs if isinstance(inputs, list) else [inputs]:
            for name in ("question", "context"):
                if not isinstance(item.get(name), str) or not item[name].strip():
                    raise ValueError(f"{name} must be a text that is not empty: {item.get(name)!r}")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        preprocess = {
            key: kwargs.pop(key) for key in ("max_seq_len", "doc_stride") if key in kwargs
        }
        return preprocess, {}, kwargs

    def preprocess(self, inputs, max_seq_len=None, doc_stride=128):
        max_seq_len = max_seq_len or self.model.config.max_position_embeddings
        question = self.tokenizer(inputs["question"], add_special_tokens=False)["input_ids"]
        room = max_seq_len - len(question) - 3  # [CLS] question [SEP] context [SEP]
        if room < 1:
            raise ValueError(
                f"the question's {len(question)} tokens leave no room for the context in pieces of "
                f"max_seq_len {max_seq_len}. Raise that, or shorten the question."
            )
        encoded = self.tokenizer(
            inputs["question"],
            inputs["context"],
            truncation="only_second",
            max_length=max_seq_len,
            stride=min(doc_stride, room - 1),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        pieces = len(encoded["input_ids"])
        for piece in range(pieces):
            offsets = [
                offset if part == 1 else None
                for offset, part in zip(
                    encoded["offset_mapping"][piece], encoded.sequence_ids(piece), strict=True
                )
            ]
            yield {
                "input_ids": torch.tensor([encoded["input_ids"][piece]]),
                "attention_mask": torch.tensor([encoded["attention_mask"][piece]]),
                "offsets": offsets,
                "context": inputs["context"],
                "is_last": piece == pieces - 1,
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
        self, pieces, top_k=1, max_answer_len=30, handle_impossible_answer=False
    ) -> dict | list[dict]:
        candidates = []  # ((start, end) in characters, logit) of the best spans of each piece
        totals = []  # log of the summed exponentials of each piece's spans
        none = []
        for piece in pieces:
            real = piece["attention_mask"][0].bool()
            first, last = (piece[f"{side}_logits"][0][real].float() for side in ("start", "end"))
            none.append(first[0] + last[0])  # at [CLS]
            places = [place for place, offset in enumerate(piece["offsets"]) if offset]
            spans = first[places][:, None] + last[places][None, :]
            token = torch.arange(len(places))
            allowed = (token >= token[:, None]) & (token < token[:, None] + max_answer_len)
            begins, ends = allowed.nonzero().T
            logits = spans[begins, ends]
            totals.append(logits.logsumexp(0))
            best = logits.topk(min(len(logits), 10 * top_k)).indices
            for begin, end, logit in zip(begins[best], ends[best], logits[best], strict=True):
                start, end = piece["offsets"][places[begin]][0], piece["offsets"][places[end]][1]
                candidates.append(((start, end), logit))
        if handle_impossible_answer:
            candidates.append(((0, 0), min(none)))
            totals.append(min(none))
        total = torch.stack(totals).logsumexp(0)
        # Neighbouring pieces share text, and a character may be several tokens.
        scores: dict[tuple[int, int], float] = {}
        for span, logit in candidates:
            scores[span] = scores.get(span, 0.0) + float((logit - total).exp())
        context = pieces[0]["context"]
        answers = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in sorted(scores.items(), key=lambda item: -item[1])[:top_k]
        ]
        return answers[0] if top_k == 1 else answers
