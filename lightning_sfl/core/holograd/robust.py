"""Aggregation of clients' scalars, direction by direction; it needs directions that all clients share.

Trimming over the scalars of *distinct* directions is no defence but a bias: what it drops is what tells the most.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sfl.core.errors import require


@dataclass(frozen=True)
class Robust:
    """How the clients' scalars along one direction become one.

    Args:
        rule: mean uses the aggregation weights; trimmed_mean and median count every client once.
        trim: share of the clients, rounded down, that trimmed_mean drops at each end; at least that of the attackers.
    """

    rule: Literal["mean", "trimmed_mean", "median"] = "mean"
    trim: float = 0.1

    def __post_init__(self) -> None:
        rules = ("mean", "trimmed_mean", "median")
        require(self.rule in rules, "robust.rule", self.rule, f"one of {', '.join(rules)}")
        require(0 <= self.trim < 0.5, "robust.trim", self.trim, "a share from 0 to below 0.5")

    def aggregate(self, scalars: Tensor, shares: Tensor) -> Tensor:
        """One scalar a direction (count,) from scalars (n, count); shares (n,) sum to 1."""
        if self.rule == "mean":
            return shares.to(scalars) @ scalars
        ordered, n = scalars.sort(dim=0).values, len(scalars)
        if self.rule == "median":
            return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        dropped = int(self.trim * n + 1e-9)  # 0.29 * 100 is 28.999999999999996
        if dropped == 0 and self.trim > 0:
            warnings.warn(f"robust.trim={self.trim} of {n} clients drops none: a plain mean", stacklevel=2)
        return ordered[dropped : n - dropped].mean(dim=0)


MEAN = Robust()
