"""Three rules as the paper and its code have them, for comparison only: no method of the package can reach them.

Momentum-centric: every estimate is a multiple of the momentum, so the momentum never turns, and the running norm is
multiplied by .9 + .1 |a| at every step. ADC: directions and learning signal lie inside the subspace, which therefore
never turns either. Trimming across distinct directions drops the scalars that tell the most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sfl.core.holograd.basis import captured_energy, oja
from lightning_sfl.core.holograd.directions import orthonormal_rows, unit_rows


class LegacyMomentum:
    """estimate = a sigma m / ||m||; m <- beta m + (1 - beta) estimate; sigma <- .9 sigma + .1 ||estimate||."""

    def __init__(self, momentum: Tensor, beta: float = 0.9, scaled: bool = True) -> None:
        self.momentum, self.beta, self.scaled, self.sigma = momentum.clone(), beta, scaled, 1.0

    def step(self, gradient: Tensor) -> Tensor:
        """The estimate from one scalar, <gradient, m / ||m||>; without `scaled` the rule of the theorems."""
        unit = self.momentum / self.momentum.norm()
        estimate = float(gradient @ unit) * (self.sigma if self.scaled else 1.0) * unit
        self.momentum = self.beta * self.momentum + (1 - self.beta) * estimate
        self.sigma = 0.9 * self.sigma + 0.1 * float(estimate.norm())
        return estimate


class LegacySubspace:
    """v = U z / ||U z||, estimate = (r / K) sum a v; U <- U + alpha estimate (estimate' U), QR now and then."""

    def __init__(self, rows: Tensor, alpha: float = 1e-3, every: int = 100) -> None:
        self.rows, self.alpha, self.every, self.steps = rows.clone(), alpha, every, 0

    def step(self, gradient: Tensor, normals: Tensor) -> Tensor:
        """The estimate from the scalars of normals (K, rank), whose energy inside the subspace is 1 by construction."""
        directions = unit_rows(normals @ self.rows)
        estimate = len(self.rows) / len(directions) * ((directions @ gradient) @ directions)
        self.learn(estimate)
        return estimate

    def learn(self, signal: Tensor) -> None:
        """Oja's step; QR every so many steps, else each row is only brought to length 1."""
        self.steps += 1
        moved = oja(self.rows, signal, self.alpha)
        self.rows = orthonormal_rows(moved) if self.steps % self.every == 0 else unit_rows(moved)

    def captured(self, gradient: Tensor) -> float:
        """True share of the gradient's energy inside the subspace."""
        return captured_energy(self.rows, gradient)


def trimmed_over_directions(scalars: Tensor, trim: float) -> Tensor:
    """Coefficients (K,) of the mean over the scalars that survive; what is dropped has 0. The sum is over 1 / K'."""
    dropped = int(trim * len(scalars) + 1e-9)
    kept = scalars.argsort()[dropped : len(scalars) - dropped]
    coefficients = torch.zeros_like(scalars)
    coefficients[kept] = scalars[kept] / len(kept)
    return coefficients
