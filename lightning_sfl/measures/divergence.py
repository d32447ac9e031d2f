"""Gradient divergence: how far clients' gradients at one state lie from their mean (MiniBatch-SFL, arXiv 2308.11953).

The norm is given plainly, per coordinate and relative to the mean gradient: a client half grows with the cut, and the
plain norm with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.gram import NAN, quotient, vanishes


@dataclass(frozen=True)
class Divergence:
    """per_client: ||g_i - gbar||, (n,); mean, rms: over the clients; rel: mean / ||gbar||.

    percoord: mean / sqrt(coordinates).
    """

    per_client: Tensor
    mean: float
    rms: float
    rel: float
    percoord: float


def divergence(gram: Tensor, weights: Tensor, coordinates: int) -> Divergence:
    """From the Gram matrix (n, n) of the gradients and weights (n,) of sum 1; all NaN with one client or none."""
    if len(gram) < 2:
        return Divergence(torch.full((len(gram),), NAN, dtype=torch.float64), NAN, NAN, NAN, NAN)
    squares, onto_mean = gram.diagonal(), gram @ weights
    mean_square = float(weights @ onto_mean)
    per_client = (squares - 2 * onto_mean + mean_square).clamp(min=0).sqrt()
    mean = float(weights @ per_client)
    return Divergence(
        per_client=per_client,
        mean=mean,
        rms=math.sqrt(float(weights @ per_client.square())),
        rel=NAN if vanishes(mean_square, float(weights @ squares)) else mean / math.sqrt(mean_square),
        percoord=quotient(mean, math.sqrt(coordinates)),
    )


def split_half(cross: Tensor, weights: Tensor) -> float:
    """Estimate of rms^2 without the bias of batch noise: sum w <a_i - abar, b_i - bbar> from <a_i, b_j>, (n, n).

    a_i and b_i are gradients of client i on disjoint halves of its batch. It may be negative; NaN with one client or
    none.
    """
    if len(cross) < 2:
        return NAN
    return float(weights @ cross.diagonal() - weights @ cross @ weights)
