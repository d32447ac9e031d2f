"""Seeds that bind a direction to what it was computed for, so that nobody can choose it.

seed(t, j) = SHA-256(S0 | H(parameters) | H(batch) | [H(basis)] | t, 8 bytes | j, 4 bytes), integers big-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# How a seed becomes numbers is part of S0: who draws otherwise gets other seeds, not other numbers for the same.
SCHEME = b"holograd/1 numpy-philox4x64-10 ziggurat-float32 little-endian"


def base_of(seed: int, purpose: str) -> bytes:
    """S0 of a run with this seed."""
    return hashlib.sha256(SCHEME + b"|" + purpose.encode() + b"|" + str(seed).encode()).digest()


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    """32 bytes that stand for names, shapes and every bit of these tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def hash_batch(rows: np.ndarray, batch_seed: int = 0) -> bytes:
    """32 bytes that stand for these row numbers, in this order, and the seed of the batch's other draws."""
    numbers = np.append(np.asarray(rows, dtype=np.int64), np.int64(batch_seed))
    return hashlib.sha256(numbers.astype(">i8").tobytes()).digest()


@dataclass(frozen=True)
class Commitment:
    """What directions are drawn for; each field is a digest of 32 bytes, `basis` may be empty."""

    base: bytes
    state: bytes
    batch: bytes
    basis: bytes = b""

    def seed(self, step: int, index: int) -> bytes:
        """Seed of direction `index` in this step."""
        numbers = step.to_bytes(8, "big") + index.to_bytes(4, "big")
        return hashlib.sha256(self.base + self.state + self.batch + self.basis + numbers).digest()

    def seeds(self, step: int, count: int) -> list[bytes]:
        """Seeds of the first `count` directions in this step."""
        return [self.seed(step, index) for index in range(count)]


def basis_seeds(base: bytes, count: int) -> list[bytes]:
    """Seeds of the rows that a learned basis starts from."""
    return [hashlib.sha256(base + b"basis" + index.to_bytes(4, "big")).digest() for index in range(count)]
