"""Directions: unit vectors that are drawn anew from their seeds whenever they are needed, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

DirectionKind = Literal["random", "orthogonal"]
Function = TypeVar("Function", bound=Callable[..., Any])
BLOCK_NUMBERS = 1 << 23  # at most so many at a time, or one direction where that is longer


def without_autocast(function: Function) -> Function:
    """What replicas compute again keeps its precision, whatever lower one is on around it (bf16-mixed)."""
    apart: Function = torch.autocast("cpu", enabled=False)(torch.autocast("cuda", enabled=False)(function))
    return apart


def draw(seed: bytes, size: int) -> np.ndarray:
    """Standard normal float32 numbers of a seed of 32 bytes, all of which count: half as key, half as counter."""
    key, counter = int.from_bytes(seed[:16], "big"), int.from_bytes(seed[16:], "big") << 128
    numbers: np.ndarray = np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(
        size, np.float32
    )
    return numbers


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; lengths are taken in float64."""
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).to(rows.dtype)


def orthonormal_rows(rows: Tensor) -> Tensor:
    """An orthonormal basis of what these rows span, as rows."""
    return torch.linalg.qr(rows.T).Q.T.contiguous()


class Directions:
    """Unit vectors of `size` numbers, one for each seed, orthogonal to the orthonormal rows of `basis` (rows, size).

    random: independent and isotropic. orthogonal: these made orthonormal among themselves, which needs all of them at
    once. A set that fits into one block is kept, a larger one is drawn anew in every pass.
    """

    def __init__(self, seeds: Sequence[bytes], basis: Tensor, kind: DirectionKind = "random") -> None:
        self.seeds, self.basis, self.kind = list(seeds), basis, kind
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def size(self) -> int:
        return self.basis.shape[1]

    def blocks(self, numbers: int = BLOCK_NUMBERS) -> Iterator[tuple[slice, Tensor]]:
        """Stretches of the set with their vectors (count, size), in the basis' precision and place."""
        count = len(self) if self.kind == "orthogonal" else max(1, numbers // self.size)
        for start in range(0, len(self), count):
            part = slice(start, min(start + count, len(self)))
            yield part, self._vectors(part)

    @without_autocast
    def _vectors(self, part: slice) -> Tensor:
        if self._kept is not None:
            return self._kept
        rows = torch.from_numpy(np.stack([draw(seed, self.size) for seed in self.seeds[part]])).to(self.basis)
        if len(self.basis):
            rows -= (rows @ self.basis.T) @ self.basis
        vectors = orthonormal_rows(rows) if self.kind == "orthogonal" else unit_rows(rows)
        if len(vectors) == len(self):
            self._kept = vectors
        return vectors

    def project(self, gradients: Tensor) -> Tensor:
        """Scalars (n, count) of gradients (n, size): a_ij = <g_i, v_j>."""
        scalars = gradients.new_empty(len(gradients), len(self))
        for part, vectors in self.blocks():
            scalars[:, part] = gradients @ vectors.T
        return scalars

    def combine(self, coefficients: Tensor) -> Tensor:
        """sum_j c_j v_j, a vector of `size` numbers."""
        total = self.basis.new_zeros(self.size)
        for part, vectors in self.blocks():
            total += coefficients[part] @ vectors
        return total
