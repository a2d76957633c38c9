"""Writes a teacher's vectors of plain sentences to disk, for a run file's task of kind `teacher`.

    python -m embedding.distill --teacher FOLDER --sentences sentences.txt --output FOLDER

The teacher is any SentenceTransformer; its default prompt is put before each text unless --prompt
names another. Killed, it goes on from the last complete block when started again in the same way.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from embedding.encoder import DTYPES, Opening
from embedding.results import fingerprint
from embedding.teacher import (
    NOTE,
    SENTENCES,
    VECTORS,
    TeacherNote,
    digest_of,
    open_vectors,
    read_note,
    write_note,
)
from pretraining.command import readable_errors
from pretraining.files import check_output, read_text, write_text

# Sentences between two notes of progress; within a block the library sorts by length.
BLOCK = 2_048


def read_sentences(files: list[Path]) -> list[str]:
    """The distinct lines of text files, in order.

    Raises:
        OSError, ValueError: if a file cannot be read or there is no text; the message names it.
    """
    sentences: dict[str, None] = {}
    for file in files:
        # A byte order mark that came with a file pasted in would be dropped when it is read back.
        lines = (line.strip().lstrip("\ufeff").strip() for line in read_text(file).splitlines())
        lines = list(filter(None, lines))
        if not lines:
            raise ValueError(f"{file} has no text. One sentence a line is expected.")
        sentences |= dict.fromkeys(lines)
    return list(sentences)


def start_or_resume(output: Path, wanted: TeacherNote, sentences: list[str]) -> TeacherNote:
    """Makes the folder, or checks that what it holds is the same work.

    Raises:
        OSError: if the disk cannot hold the vectors.
        ValueError: if it holds other work, or something else.
    """
    if (output / NOTE).exists():
        found = read_note(output)
        if found.same_work != wanted.same_work:
            raise ValueError(
                f"{output} holds vectors of another teacher, prompt or other sentences "
                f"({found.teacher}, {found.count:,}). Name another folder."
            )
        if found.done:
            return found
    else:
        check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    needed = 2 * wanted.count * wanted.size
    if (free := shutil.disk_usage(output).free) < needed:
        raise OSError(
            f"{output}: the vectors take {needed / 2**20:,.0f} MB, but {free / 2**20:,.0f} MB are "
            "free. Make room, or take fewer sentences."
        )
    write_note(output, wanted)  # first: from now on, all that the folder holds is this work's
    write_text(output / SENTENCES, "".join(f"{text}\n" for text in sentences))
    open_vectors(output, wanted, "w+").flush()
    return wanted


def write_vectors(
    model: SentenceTransformer,
    sentences: list[str],
    output: Path,
    note: TeacherNote,
    batch_size: int,
) -> None:
    """Encodes what is missing, block by block; the note counts a block once it is on disk."""
    vectors = open_vectors(output, note, "r+")
    began, first = time.perf_counter(), note.done
    for start in range(first, note.count, BLOCK):
        stop = min(start + BLOCK, note.count)
        vectors[start:stop] = (
            model.encode(
                sentences[start:stop],
                prompt_name=note.prompt,
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            .float()
            .cpu()
            .numpy()
            .astype(np.float16)
        )
        vectors.flush()
        write_note(output, TeacherNote(**{**vars(note), "done": stop}))
        rate = (stop - first) / (time.perf_counter() - began)
        print(
            f"{stop:,} of {note.count:,}, {rate:,.0f}/s, "
            f"{(note.count - stop) / rate / 60:,.0f} minutes left",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="folder, or name on the Hub")
    parser.add_argument("--sentences", nargs="+", type=Path, required=True, help="text files")
    parser.add_argument("--output", type=Path, required=True, help="folder to make or go on with")
    parser.add_argument("--prompt", help="name of one of the teacher's prompts")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of config.json")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with readable_errors("distill"):
        sentences = read_sentences(args.sentences)
        opening = Opening.of(args.teacher, dtype=args.dtype)
        model = opening.open()
        if args.prompt is not None and args.prompt not in model.prompts:
            raise ValueError(
                f"{args.teacher} has no prompt {args.prompt!r}; it has {', '.join(model.prompts)}."
            )
        wanted = TeacherNote(
            teacher=args.teacher,
            fingerprint=fingerprint(opening),
            prompt=args.prompt,
            sentences=digest_of(sentences),
            count=len(sentences),
            size=model.get_embedding_dimension(),
        )
        note = start_or_resume(args.output, wanted, sentences)
        write_vectors(model, sentences, args.output, note, args.batch_size)
    print(f"{args.output / VECTORS}: {wanted.count:,} vectors of {wanted.size}")


if __name__ == "__main__":
    main()
