"""Where the masked tokens of held-out rows stand: by domain, by position and length of documents.

A group is named by the suffix that its figures get: `/law (hans)`, `/tokens 128-255`,
`/documents of 17-32 tokens`.
"""

from dataclasses import dataclass

import numpy as np

from data_collator_wwm import document_positions, split_row
from pretraining.data.rows import Rows

# Bands of positions in a document and of lengths of documents: the first one has this many, and the
# end of each further band is twice that of the one before.
FIRST_POSITIONS = 128
FIRST_LENGTHS = 16

POSITIONS, DOCUMENTS = "/tokens ", "/documents of "


@dataclass(frozen=True)
class TokenPlaces:
    """Places of tokens, each an array of the same shape; `places[mask]` chooses some of them.

    Attributes:
        documents: number of the document, counted over all rows. Where the rows separate domains,
            documents that are from one line of the corpus have the same.
        positions: in the document, from 0 for [CLS].
        lengths: tokens of the document in its row, [CLS] and [SEP] aside.
        words: number of the word, counted over all rows.
        domains: name of the domain and script; None if the rows do not separate them.
    """

    documents: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    words: np.ndarray
    domains: np.ndarray | None

    def __getitem__(self, chosen: np.ndarray) -> "TokenPlaces":
        domains = None if self.domains is None else self.domains[chosen]
        return TokenPlaces(
            self.documents[chosen],
            self.positions[chosen],
            self.lengths[chosen],
            self.words[chosen],
            domains,
        )

    def by_domain(self) -> dict[str, np.ndarray]:
        """{suffix: bool}, one for each domain."""
        if self.domains is None:
            return {}
        return {f"/{domain}": self.domains == domain for domain in np.unique(self.domains)}

    def by_position(self) -> dict[str, np.ndarray]:
        """{suffix: bool}, one for each band of positions that has tokens."""
        bands, first = {}, 0
        while first <= self.positions.max():
            end = max(2 * first, FIRST_POSITIONS)
            bands[f"{POSITIONS}{first}-{end - 1}"] = _between(self.positions, first, end - 1)
            first = end
        return {name: chosen for name, chosen in bands.items() if chosen.any()}

    def by_length(self, unit: str = DOCUMENTS) -> dict[str, np.ndarray]:
        """{suffix: bool}, one for each band of lengths that has tokens."""
        bands, first, last = {}, 1, FIRST_LENGTHS
        while first <= self.lengths.max():
            bands[f"{unit}{first}-{last} tokens"] = _between(self.lengths, first, last)
            first, last = last + 1, 2 * last
        return {name: chosen for name, chosen in bands.items() if chosen.any()}


def _between(values: np.ndarray, first: int, last: int) -> np.ndarray:
    return (values >= first) & (values <= last)


def stored_ids(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The ids and word starts of all rows, (rows, seq_len)."""
    return split_row(np.stack([rows[index] for index in range(len(rows))]))


def token_places(rows: Rows) -> TokenPlaces:
    """The places of all tokens of a row set, (rows, seq_len)."""
    ids, starts = stored_ids(rows)
    special = rows.manifest["special_token_ids"]
    positions = document_positions(ids, special["cls_id"])
    documents = parts = numbers(positions == 0)
    domains, shards = None, rows.manifest["shards"]
    if all("domain" in shard for shard in shards):
        names = [shard["domain"] for shard in shards]
        domains = np.repeat(names, [shard["rows"] for shard in shards])
        domains = np.broadcast_to(domains[:, None], ids.shape)
    if all("documents" in shard for shard in shards):
        lines = np.concatenate([shard["documents"] for shard in shards])
        _, of_parts = np.unique(lines, return_inverse=True)
        documents = of_parts[parts - 1]
    text = ~np.isin(ids, [special[name] for name in ("cls_id", "sep_id", "pad_id")])
    return TokenPlaces(documents, positions, lengths_of(parts, text), numbers(starts), domains)


def numbers(begins: np.ndarray) -> np.ndarray:
    """The number of the document, sentence or word that each token of a row set belongs to.

    Args:
        begins: (rows, seq_len) bool, whether one begins here.
    """
    return begins.cumsum().reshape(begins.shape)


def lengths_of(units: np.ndarray, text: np.ndarray) -> np.ndarray:
    """For each token, how many tokens its unit has.

    Args:
        units: (rows, seq_len), numbers of units such as documents.
        text: (rows, seq_len) bool, whether a token counts.
    """
    return np.bincount(units.ravel(), text.ravel()).astype(np.int64)[units]
