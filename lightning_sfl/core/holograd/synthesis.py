"""From scalars back to a gradient: exact coordinates in a basis, plus an estimate of what lies outside it.

estimate = sum_i b_i q_i + s (d / k) sum_j a_j v_j,  d = D - q dimensions outside the basis, k directions v_j there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sfl.core.holograd.directions import DirectionKind, Directions

Scale = Literal["mmse", "unbiased", "norm"]
HEADER_BYTES, DIGEST_BYTES, STEP_BYTES, SCALAR_BYTES = 16, 32, 8, 4


def factor(count: int, size: int, kind: DirectionKind, scale: Scale, clients: float = 1.0) -> float:
    """What scalars are multiplied by: s d / k for `count` = k directions in `size` = d dimensions.

    unbiased: s = 1. mmse: the s of least error, 1 / (1 + relative variance). norm: s = sqrt(k / d). clients: how many
    independent sets of directions are averaged; mmse is then best where these clients' gradients are equal.
    """
    variance = (size / count - 1 if kind == "orthogonal" else (size - 1) / count) / clients
    shrink = {"unbiased": 1.0, "mmse": 1 / (1 + variance), "norm": math.sqrt(clients * count / size)}[scale]
    return shrink * size / count


@dataclass(frozen=True)
class Message:
    """All that a replica needs for one step: coordinates (rows of the basis,) and the coefficients of each set.

    batches: what each set of directions was committed to; one set where clients share theirs, else one a client.
    """

    step: int
    batches: tuple[bytes, ...]
    coordinates: Tensor
    coefficients: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the step's number, a digest for each set, and all numbers as float32."""
        numbers = len(self.coordinates) + sum(map(len, self.coefficients))
        return STEP_BYTES + DIGEST_BYTES * len(self.batches) + SCALAR_BYTES * numbers


def upload_bytes(num_scalars: int) -> int:
    """Bytes of one client's upload: a header and its scalars as float32."""
    return HEADER_BYTES + SCALAR_BYTES * num_scalars


def synthesize(coordinates: Tensor, coefficients: Sequence[Tensor], sets: Sequence[Directions]) -> Tensor:
    """The estimate, a vector of D numbers; all sets lie outside the same basis."""
    total = coordinates @ sets[0].basis
    for each, directions in zip(coefficients, sets, strict=True):
        total += directions.combine(each)
    return total
