"""Makes a model to start from whose token embeddings follow from counts of the training rows.

    python -m pretraining.start_from_counts \
        --rows ROWS --tokenizer FOLDER --model configs/mini.json --output FOLDER

The embeddings are the left singular vectors of the tokens' positive pointwise mutual information
(PPMI) within a window, times the roots of the singular values (Levy and Goldberg, 2014; Levy,
Goldberg and Dagan, 2015), each of the length that random initialization gives it. The decoder's
bias is the logarithm of the tokens' frequencies. All else is as in a fresh model. Special tokens,
and tokens that do not occur, keep their random embeddings.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from tqdm import tqdm
from transformers import AutoTokenizer, set_seed

from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import document_positions, split_row
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.rows import Rows, open_rows

WINDOW = 4  # tokens to each side; one at distance d counts 1 / d
CHUNK_ROWS = 2048
SMOOTHING = 0.75  # exponent of the counts of context tokens, against the bias for rare ones


def count(rows: Rows, number: int, vocab_size: int, cls_id: int) -> sparse.csr_array:
    """(vocab_size, vocab_size) symmetric co-occurrences in `number` rows at equal distances."""
    total = sparse.csr_array((vocab_size, vocab_size), dtype=np.float32)
    chosen = np.linspace(0, len(rows) - 1, number).astype(int)
    for part in tqdm(np.array_split(chosen, -(-number // CHUNK_ROWS)), desc="counting"):
        ids = np.concatenate([split_row(rows[row])[0] for row in part]).astype(np.int64)
        position = document_positions(ids, cls_id)
        for distance in range(1, WINDOW + 1):
            inside = position[distance:] >= distance
            pair = ids[:-distance][inside], ids[distance:][inside]
            weight = np.full(len(pair[0]), 1 / distance, dtype=np.float32)
            total += sparse.coo_array((weight, pair), shape=total.shape).tocsr()
    return (total + total.T).tocsr()


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


def frequencies(rows: Rows, number: int, vocab_size: int) -> np.ndarray:
    """(vocab_size,) shares of the tokens, those that do not occur as if seen half a time."""
    chosen = np.linspace(0, len(rows) - 1, number).astype(int)
    seen = np.zeros(vocab_size)
    for part in np.array_split(chosen, -(-number // CHUNK_ROWS)):
        ids = np.concatenate([split_row(rows[row])[0] for row in part])
        seen += np.bincount(ids, minlength=vocab_size)
    seen = np.maximum(seen, 0.5)
    return seen / seen.sum()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="row set to count in")
    add("--tokenizer", required=True, help="folder of the tokenizer that it was made with")
    add("--model", required=True, help="configuration of the fresh model (JSON)")
    add("--output", type=Path, required=True, help="model folder to write")
    add("--count_rows", type=int, default=60_000, help="rows that are counted")
    add("--seed", type=int, default=1, help="of all that is random (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        sys.exit(f"start_from_counts: {arguments.output} is there already. Name another folder.")
    began = time.process_time()
    try:
        rows = open_rows(arguments.rows)
        config = ChineseModernBertConfig.from_json_file(arguments.model)
    except (OSError, ValueError) as error:
        sys.exit(f"start_from_counts: {error}")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, trust_remote_code=True)
    special, size = sorted(tokenizer.all_special_ids), config.vocab_size
    number = min(arguments.count_rows, len(rows))

    information = ppmi(count(rows, number, size, config.cls_token_id), special)
    print(f"{information.nnz / 1e6:.1f} M pairs; singular vectors …", flush=True)
    left, values, _ = svds(information, k=config.embedding_width, random_state=arguments.seed)
    vectors = torch.from_numpy((left * np.sqrt(values)).astype(np.float32))

    set_seed(arguments.seed)
    model = ChineseModernBertForMaskedLM(config)
    embeddings, bias = model.get_input_embeddings().weight, model.decoder.bias
    with torch.no_grad():
        length = vectors.norm(dim=-1, keepdim=True)
        known = length[:, 0] > 0
        scale = embeddings.norm(dim=-1).mean()
        embeddings[known] = vectors[known] / length[known] * scale
        share = torch.from_numpy(frequencies(rows, number, size)).float()
        share[special] = share.min()  # they are never predicted
        bias.copy_(share.log() - share.log().mean())
    model.save_pretrained(arguments.output)
    print(
        f"{arguments.output}: {int(known.sum()):,} embeddings from {number:,} rows, "
        f"{time.process_time() - began:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
