"""Probe alignment: whether updates go where the loss on a fixed set of rows falls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.gram import NAN, vanishes


@dataclass(frozen=True)
class ProbeAlignment:
    """B: 1 - cos(mean update, probe); C: weighted mean of 1 - cos(update_i, probe); cosines: (n,).

    The probe is minus the gradient, so 0 is straight downhill, 1 across, above 1 uphill. Zero vectors have no cosine:
    they are NaN in `cosines`, and C is the mean over the others.
    """

    B: float
    C: float
    cosines: Tensor


def probe_alignment(gram: Tensor, weights: Tensor) -> ProbeAlignment:
    """From the Gram matrix (n + 1, n + 1) of n updates and, last, the probe; weights (n,) of sum 1."""
    updates, onto_probe, probe_square = gram[:-1, :-1], gram[:-1, -1], float(gram[-1, -1])
    squares = updates.diagonal()
    cosines = torch.where(squares > 0, onto_probe / (squares * probe_square).sqrt(), NAN).clamp(-1, 1)
    return ProbeAlignment(
        B=1 - _cosine_of_mean(updates, onto_probe, probe_square, weights),
        C=distance_of(cosines, weights),
        cosines=cosines,
    )


def distance_of(cosines: Tensor, weights: Tensor) -> float:
    """Weighted mean of 1 - cosine over those that are defined, the weights normalised over them; NaN where none is."""
    known = cosines.isfinite()
    total = float(weights[known].sum())
    return float(weights[known] @ (1 - cosines[known])) / total if total else NAN


def _cosine_of_mean(updates: Tensor, onto_probe: Tensor, probe_square: float, weights: Tensor) -> float:
    mean_square = float(weights @ updates @ weights)
    if vanishes(mean_square, float(weights @ updates.diagonal())):
        return NAN
    return cosine(float(weights @ onto_probe), mean_square, probe_square)


def cosine(product: float, square: float, other_square: float) -> float:
    """Cosine of two vectors from their inner products; NaN where one of them is zero."""
    if not square > 0 or not other_square > 0:
        return NAN
    return max(-1.0, min(1.0, product / math.sqrt(square * other_square)))
