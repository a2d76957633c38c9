"""How well scores agree with what people said: correlation, area under the curve, ranks."""

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score


def pair_metrics(scores: np.ndarray, truth: list[float], binary: bool) -> dict[str, float]:
    """Spearman and Pearson of scores with grades, and AUC where the grades are 0 and 1.

    Raises:
        ValueError: if all grades are the same, so that nothing can be said.
    """
    if len(set(truth)) < 2:
        raise ValueError(f"All {len(truth)} pairs have the same score; at least two are needed.")
    metrics = {
        "spearman": float(spearmanr(scores, truth).statistic),
        "pearson": float(pearsonr(scores, truth).statistic),
    }
    if binary:
        metrics["auc"] = float(roc_auc_score(truth, scores))
    return metrics


def ranks_of(scores: np.ndarray, relevant: list[int]) -> np.ndarray:
    """The rank from 1 of the relevant document of each query; ties, and NaN, count against it.

    Args:
        scores: (queries, documents).
        relevant: the document of each query.

    Returns:
        (queries,), int64.
    """
    own = scores[np.arange(len(relevant)), relevant]
    return (~(scores < own[:, None])).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """MRR@10, nDCG@10 and recall@1, 5, 10, of queries with one relevant document each.

    With one relevant document the ideal DCG is 1, so nDCG@10 is 1 / log2(1 + rank), or 0 after
    rank 10.
    """
    found = ranks <= 10
    return {
        "mrr@10": float(np.where(found, 1 / ranks, 0).mean()),
        "ndcg@10": float(np.where(found, 1 / np.log2(1 + ranks), 0).mean()),
        **{f"recall@{k}": float((ranks <= k).mean()) for k in (1, 5, 10)},
    }
