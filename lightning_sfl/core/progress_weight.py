"""How much activations count by how far training had come when they were made (GAS)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lightning_sfl.core.errors import require

SHAPES = ("linear", "cumulative", "uniform", "poly", "exp")


@dataclass(frozen=True)
class ProgressWeight:
    """Weight s(n) of activations in the running statistics, n being 1 + server steps at the client's start + its own.

    Args:
        shape: n (the paper), n by the released code's count at the start, 1, scale * n^growth, scale * exp(growth * n).
        scale: factor of `poly` and `exp`.
        growth: exponent of `poly`, rate of `exp`.
    """

    shape: Literal["linear", "cumulative", "uniform", "poly", "exp"] = "linear"
    scale: float = 1.0
    growth: float = 1.0

    def __post_init__(self) -> None:
        require(self.shape in SHAPES, "progress_weight.shape", self.shape, f"one of {SHAPES}")
        require(0 < self.scale < math.inf, "progress_weight.scale", self.scale, "a finite number > 0")
        require(0 <= self.growth < math.inf, "progress_weight.growth", self.growth, "a finite number >= 0")

    def of(self, count: int) -> float:
        """s(n)."""
        if self.shape == "uniform":
            return 1.0
        if self.shape == "poly":
            return self.scale * float(count) ** self.growth
        return self.scale * math.exp(self.growth * count) if self.shape == "exp" else float(count)


PROGRESS = ProgressWeight()


class ProgressCount:
    """Where a newcomer's n starts: at 1 + the server's steps so far, or at the released code's running sum of them."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        self.server_steps = 0
        self.total = 1

    def newcomer(self) -> int:
        """n of the first batch of a client that starts now."""
        return self.total if self.shape == "cumulative" else 1 + self.server_steps

    def aggregated(self) -> None:
        """A round is over; the released code adds all server steps so far, not only those of the round."""
        self.total += self.server_steps
