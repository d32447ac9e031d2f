"""Running weighted mean and (co)variance of the activations of each label (GAS, equations 11 and 12)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Covariance = Literal["diagonal", "full"]
EPSILON = 1e-5
FIRST_JITTER, TRIES = 1e-6, 100


class ActivationStatistics:
    """Per label: mean (classes, dim), variance (classes, dim) or covariance (classes, dim, dim), weight (classes,).

    epsilon is added to the variances at every merge but the first; with 0 they are those of all rows seen, pooled.
    """

    def __init__(self, num_classes: int, covariance: Covariance = "diagonal", epsilon: float = EPSILON) -> None:
        self.num_classes, self.covariance, self.epsilon = num_classes, covariance, epsilon
        self.mean = self.spread = self.weight = torch.zeros(0)

    @property
    def known(self) -> list[int]:
        """Labels of which activations have been seen."""
        return self.weight.nonzero().flatten().tolist()

    def update(self, rows: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Merge these activations (rows, dim) with labels and weights (rows,)."""
        if not len(self.weight):
            dim = rows.shape[1]
            shape = (self.num_classes, dim) if self.covariance == "diagonal" else (self.num_classes, dim, dim)
            self.mean = rows.new_zeros(self.num_classes, dim)
            self.spread, self.weight = rows.new_zeros(shape), rows.new_zeros(self.num_classes, dtype=torch.float64)
        for label in labels.unique().tolist():
            chosen = labels == label
            self._merge(label, rows[chosen], weights[chosen].to(torch.float64))

    def _merge(self, label: int, rows: Tensor, weights: Tensor) -> None:
        weight = weights.sum()
        shares = (weights / weight).to(rows.dtype)
        mean = shares @ rows
        spread = self._about(rows, mean, shares)
        if self.weight[label] > 0:
            old = self.weight[label] / (self.weight[label] + weight)
            both = torch.stack([old, 1 - old]).to(rows.dtype)
            means = torch.stack([self.mean[label], mean])
            joint = both @ means
            spread = both[0] * self.spread[label] + both[1] * spread + self._about(means, joint, both)
            mean = joint
            (spread if self.covariance == "diagonal" else spread.diagonal()).add_(self.epsilon)
        self.mean[label], self.spread[label] = mean, spread
        self.weight[label] += weight

    def _about(self, rows: Tensor, centre: Tensor, shares: Tensor) -> Tensor:
        away = rows - centre
        return shares @ away.square() if self.covariance == "diagonal" else (away.T * shares) @ away

    def draw(self, label: int, count: int, draws: np.random.Generator) -> Tensor:
        """`count` rows (count, dim) from the normal distribution of this label."""
        mean, spread = self.mean[label], self.spread[label]
        normal = torch.from_numpy(draws.standard_normal((count, len(mean)), dtype=np.float32)).to(mean)
        if self.covariance == "full":
            factor = cholesky(spread)
            if factor is not None:
                return mean + normal @ factor.T
            spread = spread.diagonal()
        return mean + (spread + EPSILON).sqrt() * normal

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"mean": self.mean, "spread": self.spread, "weight": self.weight}

    def load(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Take up what `state` gave."""
        self.mean, self.spread, self.weight = (state[name].to(device) for name in ("mean", "spread", "weight"))


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower factor, with the least jitter of 0, 1e-6, 1e-5, ... at which there is one; None after 100 tries."""
    jitter = 0.0
    for _ in range(TRIES):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * torch.eye(len(matrix)).to(matrix))
        if not failed.item():
            return factor
        jitter = jitter * 10 or FIRST_JITTER
    return None
