"""Makes a model to start from whose token embeddings follow from counts of the training rows.

    python -m pretraining.start_from_counts \
        --rows ROWS --model configs/mini.json --output FOLDER

The embeddings are the left singular vectors of the tokens' positive pointwise mutual information
(PPMI) within a window, times the roots of the singular values (Levy and Goldberg, 2014; Levy,
Goldberg and Dagan, 2015), each of the length that random initialization gives it. The decoder's
bias is the logarithm of the tokens' frequencies. All else is as in a fresh model. Special tokens,
and tokens that do not occur, keep their random embeddings.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from transformers import set_seed

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import document_positions
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.command import readable_errors
from pretraining.data.rows import Rows, RowsError, open_rows
from pretraining.files import check_output, new_folder
from pretraining.run.ngram_baseline import counted_ids

WINDOW = 4  # tokens to each side; one at distance d counts 1 / d
COUNTED_TOKENS = 30_000_000  # rows at equal distances, if there are more
SMOOTHING = 0.75  # exponent of the counts of context tokens, against the bias for rare ones


def count(
    chunks: Iterator[np.ndarray], vocab_size: int, cls_id: int
) -> tuple[sparse.csr_array, np.ndarray]:
    """Counts tokens, and tokens near each other within a document.

    Args:
        chunks: (tokens,) ids of rows laid end to end.

    Returns:
        (vocab_size, vocab_size) symmetric co-occurrences, and (vocab_size,) occurrences.
    """
    together = sparse.csr_array((vocab_size, vocab_size), dtype=np.float32)
    seen = np.zeros(vocab_size)
    for chunk in chunks:
        ids = chunk.astype(np.int64)
        seen += np.bincount(ids, minlength=vocab_size)
        position = document_positions(ids, cls_id)
        for distance in range(1, WINDOW + 1):
            inside = position[distance:] >= distance
            pair = ids[:-distance][inside], ids[distance:][inside]
            weight = np.full(len(pair[0]), 1 / distance, dtype=np.float32)
            together += sparse.coo_array((weight, pair), shape=together.shape).tocsr()
    return (together + together.T).tocsr(), seen


def ppmi(counts: sparse.csr_array, left_out: list[int]) -> sparse.csr_array:
    """Positive pointwise mutual information, with smoothed frequencies of the context tokens."""
    keep = np.ones(counts.shape[0], dtype=np.float32)
    keep[left_out] = 0
    counts = sparse.diags_array(keep) @ counts @ sparse.diags_array(keep)
    of_token = np.asarray(counts.sum(1)).ravel()
    of_context = of_token**SMOOTHING
    of_context /= of_context.sum()
    table = counts.tocoo()
    information = np.log(table.data / of_token[table.row] / of_context[table.col])
    known = information > 0
    places = table.row[known], table.col[known]
    return sparse.coo_array((information[known], places), shape=counts.shape).tocsr()


def embed(
    information: sparse.csr_array, embeddings: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of the tokens that the table knows, as long as the others on average.

    Args:
        information: (vocab_size, vocab_size) of `ppmi`.
        embeddings: (vocab_size, dimensions) of a fresh model.

    Returns:
        (vocab_size, dimensions) embeddings, and (vocab_size,) whether a token is known.
    """
    left, values, _ = svds(information, k=embeddings.shape[1], random_state=seed)
    vectors = torch.from_numpy((left * np.sqrt(values)).astype(np.float32))
    # Not by length: rounding leaves the vectors of empty rows a little longer than 0.
    known = torch.from_numpy(np.diff(information.indptr) > 0)
    scale = embeddings.norm(dim=-1).mean()
    vectors = torch.nn.functional.normalize(vectors) * scale
    return torch.where(known[:, None], vectors, embeddings), known


def decoder_bias(seen: np.ndarray, special: list[int]) -> torch.Tensor:
    """(vocab_size,) logarithms of the tokens' shares, around 0.

    Tokens that do not occur count as if seen half a time; so do special ones, which are never
    predicted.
    """
    seen = np.maximum(seen, 0.5)
    seen[special] = 0.5
    bias = torch.from_numpy(np.log(seen)).float()
    return bias - bias.mean()


def make_model(config: ChineseModernBertConfig, rows: Rows, seed: int):
    """The model, and how many of its embeddings come from counts."""
    special = sorted(rows.manifest["special_token_ids"].values())
    chunks = counted_ids(rows, COUNTED_TOKENS)
    together, seen = count(chunks, config.vocab_size, rows.manifest["special_token_ids"]["cls_id"])
    information = ppmi(together, special)
    print(f"{information.nnz / 1e6:.1f} M pairs; singular vectors …", flush=True)
    set_seed(seed)
    model = ChineseModernBertForMaskedLM(config)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        embeddings, known = embed(information, weight, seed)
        weight.copy_(embeddings)
        if config.decoder_bias:
            model.decoder.bias.copy_(decoder_bias(seen, special))
    return model, int(known.sum())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", required=True, help="row set to count in")
    add("--model", type=Path, required=True, help="configuration of the fresh model (JSON)")
    add("--output", type=Path, required=True, help="model folder to make, or an empty one")
    add("--seed", type=int, default=1, help="of all that is random (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    began = time.process_time()
    with readable_errors("start_from_counts"):
        check_output(arguments.output)
        config = ChineseModernBertConfig.from_json_file(arguments.model)
        rows = open_rows(arguments.rows)
        if rows.manifest["vocab_size"] > config.vocab_size:
            raise RowsError(
                f"{arguments.rows}: its tokenizer has {rows.manifest['vocab_size']} entries, but "
                f"vocab_size in {arguments.model} is {config.vocab_size}."
            )
        with new_folder(arguments.output) as folder:
            model, known = make_model(config, rows, arguments.seed)
            model.save_pretrained(folder)
    print(
        f"{arguments.output}: {known:,} embeddings from counts, "
        f"{time.process_time() - began:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
