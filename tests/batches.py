"""The forms in which a model takes the same documents: padded, packed, flattened."""

import torch
import torch.nn.functional as F

from stream_chinese_modernbert import make_stream

VOCAB = 50

# The attention backends that work forwards and backwards on any machine.
PORTABLE_BACKENDS = ("eager", "sdpa")


def documents(*lengths, seed=1):
    """Random ids of documents of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (length,), generator=generator) for length in lengths]


def pad_rows(docs, side="right", width=None):
    """One document a row, zeros to the left or right."""
    width = width or max(map(len, docs))
    ids = torch.zeros(len(docs), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, doc in enumerate(docs):
        place = slice(width - len(doc), width) if side == "left" else slice(0, len(doc))
        ids[row, place], mask[row, place] = doc, 1
    return {"input_ids": ids, "attention_mask": mask}


def pack_rows(*rows, width=None):
    """Several documents end to end in each row, positions that restart, padding at the end."""
    batch = pad_rows([torch.cat(docs) for docs in rows], width=width)
    position_ids = torch.zeros_like(batch["input_ids"])
    for row, docs in enumerate(rows):
        positions = torch.cat([torch.arange(len(doc)) for doc in docs])
        position_ids[row, : len(positions)] = positions
    return batch | {"position_ids": position_ids}


def flatten(docs):
    """All documents in one row, as transformers' flattening collator and its kin give them."""
    lengths = torch.tensor([len(doc) for doc in docs])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return {
        "input_ids": torch.cat(docs)[None],
        "position_ids": torch.cat([torch.arange(len(doc)) for doc in docs])[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
    }


def real_tokens(batch):
    """(batch, sequence), True at tokens that are not padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]).bool() if mask is None else mask.bool()


def stream_of(batch):
    """The stream that a model makes of the batch."""
    return make_stream(
        batch["input_ids"].shape,
        batch["input_ids"].device,
        batch.get("attention_mask"),
        batch.get("position_ids"),
        batch.get("cu_seq_lens_q"),
    )


BORDERS = (64, 65, 66, 127, 128, 129, 130, 193)  # the window is 64 to each side, a block 128
SHAPES = {
    "padded left": lambda: pad_rows(documents(50, 200, 131), "left"),
    "padded right": lambda: pad_rows(documents(50, 200, 131), "right"),
    "mixed lengths, a full and an empty row": lambda: pad_rows(documents(300, 1, 7, 0, 299, 150)),
    "one length, no padding": lambda: pad_rows(documents(150, 150, 150)),
    "packed": lambda: pack_rows(documents(70, 1, 130, 65), documents(9, 200), width=280),
    "flattened": lambda: flatten(documents(70, 1, 130, 65, 200)),
    "borders of the window, padded": lambda: pad_rows(documents(*BORDERS)),
    "borders of the window, flattened": lambda: flatten(documents(*BORDERS)),
    "flattened, with an empty document": lambda: flatten(documents(70, 0, 130)),
    "documents of one token": lambda: flatten(documents(1, 1, 1, 1, 1)),
    "one token": lambda: pad_rows(documents(1)),
    "short documents only": lambda: pad_rows(documents(3, 20, 64)),
} | {f"alone, {n} tokens": lambda n=n: pad_rows(documents(n)) for n in BORDERS}
