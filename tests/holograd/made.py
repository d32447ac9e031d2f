"""Gradients and directions for the closed forms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.holograd.commitment import Commitment, base_of
from lightning_sfl.core.holograd.directions import DirectionKind, Directions

EMPTY = bytes(32)


def commitment(seed: int = 0, purpose: str = "test") -> Commitment:
    return Commitment(base_of(seed, purpose), EMPTY, EMPTY)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def no_basis(size: int) -> Tensor:
    return torch.zeros(0, size, dtype=torch.float64)


def sets(trials: int, count: int, basis: Tensor, kind: DirectionKind = "random", seed: int = 0) -> Iterator[Directions]:
    """Independent sets of directions."""
    for step in range(trials):
        yield Directions(commitment(seed).seeds(step, count), basis, kind)


def cos(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    array = np.asarray(values)
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array)))
