"""Random draws that follow from a seed and a text, and from nothing else."""

import hashlib


def draw(seed: int, purpose: str, text: str) -> float:
    """A number from 0 up to 1, the same on every machine and for any number of workers.

    Args:
        purpose: names what is drawn, so that two draws about one text are independent.
    """
    digest = hashlib.blake2b(f"{seed} {purpose}\n{text}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)  # the 53 bits that a float holds
