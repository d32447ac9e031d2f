"""What is known of the next gradient's direction: nothing, the momentum, or a learned subspace (ADC).

The estimate holds exact coordinates in this basis and random ones outside it. Without those outside a basis that learns
from its own estimates can never leave its span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.holograd.directions import draw, orthonormal_rows, unit_rows

LEAST_OUTSIDE = 16


@dataclass(frozen=True)
class BasisChoice:
    """Which basis, and how it learns from the estimates.

    Args:
        kind: none, the momentum of past estimates, or the subspace of rank `rank` (ADC).
        beta: how much of the momentum is kept each round.
        rank: dimensions of the subspace.
        rate: of the subspace's streaming Oja-QR update, on the estimate of length 1.
    """

    kind: Literal["none", "momentum", "subspace"] = "none"
    beta: float = 0.9
    rank: int = 32
    rate: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("none", "momentum", "subspace")
        require(self.kind in kinds, "basis.kind", self.kind, f"one of {', '.join(kinds)}")
        require(0 <= self.beta < 1, "basis.beta", self.beta, "from 0 to below 1")
        require(self.rank >= 1, "basis.rank", self.rank, "an integer >= 1")
        require(0 < self.rate < float("inf"), "basis.rate", self.rate, "a finite number > 0")

    @property
    def most_rows(self) -> int:
        """Scalars of an upload that the basis takes."""
        return {"none": 0, "momentum": 1, "subspace": self.rank}[self.kind]


NO_BASIS = BasisChoice()


class Basis:
    """Orthonormal `rows` (q, size) at all times; `learn` is a deterministic function of the estimates."""

    def __init__(self, choice: BasisChoice, seeds: Sequence[bytes], like: Tensor) -> None:
        self.choice, self.memory = choice, torch.zeros_like(like)
        self.rows = like.new_zeros(0, len(like))
        if choice.kind == "subspace":
            drawn = np.stack([draw(seed, len(like)) for seed in seeds[: choice.rank]])
            self.rows = orthonormal_rows(torch.from_numpy(drawn).to(like))

    def learn(self, estimate: Tensor) -> None:
        """Take in the estimate (size,) of this step."""
        if self.choice.kind == "momentum":
            self.memory = self.choice.beta * self.memory + (1 - self.choice.beta) * estimate
            self._follow()
        elif self.choice.kind == "subspace" and bool(estimate.any()):
            self.rows = orthonormal_rows(oja(self.rows, unit_rows(estimate[None])[0], self.choice.rate))

    def state(self) -> dict[str, Any]:
        """What a checkpoint, or a newcomer, has to be given."""
        return {"none": {}, "momentum": {"memory": self.memory}, "subspace": {"rows": self.rows}}[self.choice.kind]

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for name, tensor in state.items():
            setattr(self, name, tensor.to(self.memory))
        if "memory" in state:
            self._follow()

    def _follow(self) -> None:
        """The momentum's row is its direction; none while it is zero."""
        self.rows = unit_rows(self.memory[None]) if bool(self.memory.any()) else self.rows[:0]


def oja(rows: Tensor, signal: Tensor, rate: float) -> Tensor:
    """U + rate (U g) g': Oja's step of rows (q, size) towards a signal (size,); not orthonormal any more."""
    return rows + rate * torch.outer(rows @ signal, signal)


def captured_energy(rows: Tensor, gradient: Tensor) -> float:
    """Share of ||gradient||^2 inside the span of any independent rows: p'(UU')^-1 p / ||g||^2, by QR."""
    inside = orthonormal_rows(rows) @ gradient
    return float(inside.double().square().sum() / gradient.double().square().sum())
