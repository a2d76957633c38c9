"""Reranking: the best of a cheap search, put in order by a model that reads closely."""

from collections.abc import Callable, Sequence

import numpy as np
from sentence_transformers import CrossEncoder, MultiVectorEncoder

from embedding.lexical import BM25

DEPTH = 20  # documents of BM25's ranking that `search` reads again


class Reranker:
    """Scores of pairs from a cross-encoder or a late-interaction model.

    Args:
        model: either.
    """

    def __init__(self, model: CrossEncoder | MultiVectorEncoder):
        self.model = model

    def similar(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """(pairs,): the score of each pair; the left text is the query."""
        progress = len(left) > 1_000
        if isinstance(self.model, CrossEncoder):
            pairs = list(zip(left, right, strict=True))
            return np.asarray(self.model.predict(pairs, show_progress_bar=progress))
        queries = _each_once(left, self.model.encode_query)
        documents = _each_once(right, self.model.encode_document)
        return self.model.similarity_pairwise(queries, documents).float().cpu().numpy()

    def search(self, queries: list[str], documents: list[str]) -> np.ndarray:
        """(queries, documents): scores of BM25's best `DEPTH`; the others lie below, all alike."""
        first = BM25().search(queries, documents)
        best = np.argsort(-first, axis=1, kind="stable")[:, :DEPTH]
        left = [query for query in queries for _ in range(best.shape[1])]
        scores = self.similar(left, [documents[number] for number in best.ravel()])
        found = np.full(first.shape, scores.min() - 1, dtype=np.float32)
        np.put_along_axis(found, best, scores.reshape(best.shape), axis=1)
        return found


def _each_once(texts: Sequence[str], encode: Callable) -> list:
    """The token vectors of each text; one that occurs again is not encoded again."""
    distinct = list(dict.fromkeys(texts))
    known = dict(zip(distinct, encode(distinct), strict=True))
    return [known[text] for text in texts]
