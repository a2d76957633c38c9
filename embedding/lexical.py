"""What can be had without a model: bags of characters and bigrams, and BM25 over words.

Both take the weights of terms (idf) from the texts that they are given to compare.
"""

import importlib.util
import unicodedata

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer


class Bigrams:
    """Cosine of TF-IDF vectors of characters and character bigrams."""

    def similar(self, left: list[str], right: list[str]) -> np.ndarray:
        """(pairs,): the cosine of each pair; idf is counted on all texts of the pairs."""
        bag = self._bag([*left, *right])
        return np.asarray(bag.transform(left).multiply(bag.transform(right)).sum(axis=1)).ravel()

    def search(self, queries: list[str], documents: list[str]) -> np.ndarray:
        """(queries, documents): all cosines; idf is counted on the documents."""
        bag = self._bag(documents)
        return (bag.transform(queries) @ bag.transform(documents).T).toarray()

    @staticmethod
    def _bag(texts: list[str]) -> TfidfVectorizer:
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 2)).fit(texts)


def need_packages(*names: str, install: str = "'.[embed]'") -> None:
    """Checks that packages are installed.

    Args:
        install: what pip is told to install, for the message.

    Raises:
        ImportError: if one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed: pip install {install}")


def words_of(text: str) -> list[str]:
    """The words of a text by rjieba, after NFKC, in lower case, without white space."""
    import rjieba

    text = unicodedata.normalize("NFKC", text).lower()
    return [word for word in rjieba.cut(text) if not word.isspace()]


class BM25:
    """BM25 over words (`bm25s`, words by rjieba). It ranks documents and says nothing of pairs.

    Raises:
        ImportError: if a package is not installed.
    """

    def __init__(self):
        need_packages("bm25s", "rjieba")

    def search(self, queries: list[str], documents: list[str]) -> np.ndarray:
        """(queries, documents): all scores."""
        import bm25s

        index = bm25s.BM25()
        index.index([words_of(text) for text in documents], show_progress=False)
        return np.stack([index.get_scores(words_of(query)) for query in queries])
