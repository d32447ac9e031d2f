"""Disagreement of the clients' updates: how much of their energy averaging them destroys.

B^2 of FedProx is m2 / u2. A_ratio alone mostly tells how many clients there are, so A_null, its value for mutually
orthogonal updates, stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.gram import NAN, quotient, vanishes


@dataclass(frozen=True)
class Disagreement:
    """m2 = sum w ||d||^2; u2 = ||sum w d||^2; var = m2 - u2; A_ratio = var / m2; A_rel = var / u2; n_eff = 1 / sum w^2.

    A_excess = A_null - A_ratio. With one client the ratios and var are NaN: they would be constants.
    """

    m2: float
    u2: float
    var: float
    A_ratio: float
    A_null: float
    A_excess: float
    A_rel: float
    n_eff: float


def disagreement(gram: Tensor, weights: Tensor) -> Disagreement:
    """From the Gram matrix (n, n) of the updates and weights (n,) of sum 1."""
    squares = gram.diagonal()
    m2 = float(weights @ squares)
    u2 = max(0.0, float(weights @ gram @ weights))
    n_eff = 1 / float(weights.square().sum())
    if len(gram) < 2:
        return Disagreement(m2, u2, NAN, NAN, NAN, NAN, NAN, n_eff)
    var = max(0.0, m2 - u2)
    pairs = torch.outer(weights, weights) * gram
    off_diagonal = float((pairs - pairs.diagonal().diag()).sum())
    return Disagreement(
        m2=m2,
        u2=u2,
        var=var,
        A_ratio=quotient(var, m2),
        A_null=1 - quotient(float(weights.square() @ squares), m2),
        A_excess=quotient(off_diagonal, m2),
        A_rel=NAN if vanishes(u2, m2) else var / u2,
        n_eff=n_eff,
    )
