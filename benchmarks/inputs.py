"""Batches of random documents, padded or packed."""

import torch

import common  # noqa: F401 (puts the root on the path)
from data_collator_wwm import IGNORED


def mixed_lengths(count: int, longest: int) -> list[int]:
    """Lengths from 32 to the longest, all equally likely; the longest is among them."""
    generator = torch.Generator().manual_seed(1)
    return [*torch.randint(32, longest + 1, (count - 1,), generator=generator).tolist(), longest]


def padded_batch(lengths: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """One document per row, padded on the right: (documents, longest) each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 32_000, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = ids.masked_fill(~mask, 0)
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def packed_batch(lengths: list[int], row: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The same documents end to end, first fit, with positions that restart: (rows, row) each."""
    padded = padded_batch(lengths, torch.device("cpu"))["input_ids"]
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda d: -lengths[d]):
        for held in rows:
            if sum(lengths[d] for d in held) + lengths[document] <= row:
                held.append(document)
                break
        else:
            rows.append([document])
    ids = torch.zeros(len(rows), row, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, held in enumerate(rows):
        start = 0
        for document in held:
            end = start + lengths[document]
            ids[number, start:end] = padded[document, : lengths[document]]
            positions[number, start:end] = torch.arange(lengths[document])
            mask[number, start:end] = 1
            start = end
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: value.to(device) for name, value in batch.items()}


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels at every fourth real token, a mask rate between the ends of the curriculum."""
    ids = batch["input_ids"]
    chosen = (torch.arange(ids.shape[1], device=ids.device) % 4 == 1) & (ids != 0)
    return {**batch, "labels": ids.masked_fill(~chosen, IGNORED)}
