"""Text -> rows: segments words, encodes, marks word starts, packs.

    python -m pretraining.prepare_corpus --corpus data/train-*.jsonl.xz --tokenizer . \\
        --seq_len 1024 --output rows/train-1024
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretraining.corpus import read_documents
from pretraining.encoding import Encoder, first_ordinary_id
from pretraining.packing import pack
from pretraining.rows import sha256_of, write_rows

# Documents that a worker encodes at a time.
CHUNK = 64

_encoder: Encoder


def _start_worker(tokenizer_file: Path) -> None:
    # One process a core: threads of the tokenizer within them would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    global _encoder
    _encoder = Encoder(tokenizer_file)


def _encode(texts: list[str]) -> list[np.ndarray]:
    return _encoder.encode(texts)


def prepare(
    corpus: list[str],
    tokenizer_file: Path,
    seq_len: int,
    output: Path,
    workers: int,
    text_field: str = "text",
) -> dict:
    """Writes the row set of a corpus; returns its manifest.

    Raises:
        ValueError, OSError: on input that cannot be used; nothing is left half-written.
    """
    tokenizer = Encoder(tokenizer_file).tokenizer
    names = {"cls_id": "[CLS]", "sep_id": "[SEP]", "pad_id": "[PAD]", "mask_id": "[MASK]"}
    special = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    if missing := [names[name] for name, index in special.items() if index is None]:
        raise ValueError(f"{tokenizer_file}: the special tokens {missing} are missing.")
    facts = {
        "documents": 0,
        "characters": 0,
        "tokens": 0,  # of text, without frames and padding
        "padding_share": 0.0,
        "vocab_size": tokenizer.get_vocab_size(),
        "first_ordinary_id": first_ordinary_id(tokenizer),
        "special_token_ids": special,
        "tokenizer_sha256": sha256_of(tokenizer_file),
        "versions": {name: version(name) for name in ("tokenizers", "rjieba", "opencc")},
    }

    def texts() -> Iterator[str]:
        for document in read_documents(corpus, text_field):
            facts["documents"] += 1
            facts["characters"] += len(document.text)
            yield document.text

    def encoded(pool) -> Iterator[np.ndarray]:
        documents = texts()
        chunks = iter(lambda: list(itertools.islice(documents, CHUNK)), [])
        progress = tqdm(desc=f"prepare {output.name}", unit=" tokens", unit_scale=True)
        with progress:
            for arrays in _bounded_map(pool, chunks, ahead=4 * workers):
                for array in arrays:
                    facts["tokens"] += len(array)
                    progress.update(len(array))
                    yield array

    def counted(rows) -> Iterator[np.ndarray]:
        padding = total = 0
        for row in rows:
            padding += int((row == special["pad_id"]).sum())
            total += seq_len
            facts["padding_share"] = padding / total
            yield row

    frame = [special[name] for name in ("cls_id", "sep_id", "pad_id")]
    context = multiprocessing.get_context("spawn")  # safe beside the tokenizer's threads
    with context.Pool(workers, _start_worker, (tokenizer_file,)) as pool:
        rows = counted(pack(encoded(pool), seq_len, *frame))
        return write_rows(output, rows, seq_len, facts)


def _bounded_map(pool, chunks: Iterator[list[str]], ahead: int) -> Iterator[list[np.ndarray]]:
    """Like `pool.imap`, which would read the whole corpus into its queue."""
    pending = [pool.apply_async(_encode, (chunk,)) for chunk in itertools.islice(chunks, ahead)]
    while pending:
        yield pending.pop(0).get()
        pending += [pool.apply_async(_encode, (chunk,)) for chunk in itertools.islice(chunks, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders or patterns")
    parser.add_argument("--tokenizer", type=Path, default=Path("."), help="its folder")
    parser.add_argument("--seq_len", type=int, required=True, help="tokens of a row")
    parser.add_argument("--output", type=Path, required=True, help="folder for the row set")
    parser.add_argument("--text_field", default="text", help="field that holds the text")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        manifest = prepare(
            arguments.corpus,
            arguments.tokenizer / "tokenizer.json",
            arguments.seq_len,
            arguments.output,
            arguments.workers,
            arguments.text_field,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"prepare_corpus: {error}")
    seconds = time.perf_counter() - start
    print(
        f"{arguments.output}: {manifest['documents']:,} documents, "
        f"{manifest['characters']:,} characters, {manifest['tokens']:,} tokens "
        f"({manifest['characters'] / manifest['tokens']:.3f} characters each) in "
        f"{manifest['rows']:,} rows of {arguments.seq_len}, "
        f"{manifest['padding_share']:.2%} padding; "
        f"{manifest['tokens'] / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
