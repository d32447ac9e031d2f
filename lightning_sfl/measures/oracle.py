"""Oracle distance: how far gradients lie from the gradient of the loss on all training rows, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.gram import NAN, quotient
from lightning_sfl.measures.probe import cosine


@dataclass(frozen=True)
class OracleDistance:
    """G: weighted mean of ||g_i - g*||^2, which is bias + spread; G_rel: G / ||g*||^2; D_cos: 1 - cos(gbar, g*).

    bias: ||gbar - g*||^2, what averaging cannot mend; spread: weighted mean of ||g_i - gbar||^2, NaN with one gradient,
    whose distance is all bias; per_client: ||g_i - g*||^2, (n,). Where each gradient has an oracle of its own, bias and
    spread are those of the differences d_i = g_i - g*_i: ||dbar||^2, and the weighted mean of ||d_i - dbar||^2.
    """

    G: float
    G_rel: float
    D_cos: float
    bias: float
    spread: float
    per_client: Tensor


def oracle_distance(gram: Tensor, weights: Tensor, mean_square: float | None = None) -> OracleDistance:
    """From the Gram matrix (n + 1, n + 1) of the n differences g_i - g*_i and, last, the weighted mean of the oracles.

    weights: (n,), of sum 1; mean_square: weighted mean of ||g*_i||^2, None where all have one and the same oracle.
    """
    differences, onto_oracle, oracle_square = gram[:-1, :-1], float(weights @ gram[:-1, -1]), float(gram[-1, -1])
    squares = differences.diagonal().clamp(min=0)
    mean_of_squares = float(weights @ squares)
    bias = max(0.0, float(weights @ differences @ weights))
    square = bias + 2 * onto_oracle + oracle_square
    return OracleDistance(
        G=mean_of_squares,
        G_rel=quotient(mean_of_squares, oracle_square if mean_square is None else mean_square),
        D_cos=1 - cosine(onto_oracle + oracle_square, square, oracle_square),
        bias=bias,
        spread=max(0.0, mean_of_squares - bias) if len(squares) > 1 else NAN,
        per_client=squares,
    )


def differences_from(gradients: Sequence[Tensor], oracle: Tensor) -> list[list[Tensor]]:
    """Rows for the Gram matrix: each gradient minus the oracle, subtracted in float64, and the oracle itself."""
    exact = oracle.double()
    return [*([gradient.double() - exact] for gradient in gradients), [exact]]


def differences_from_own(
    gradients: Sequence[Tensor], oracles: Sequence[Tensor], weights: Tensor
) -> tuple[list[list[Tensor]], float]:
    """The same where each gradient has an oracle of its own, with their weighted mean; and their mean square."""
    exact = [oracle.double() for oracle in oracles]
    shares = weights.tolist()
    mean = torch.stack([share * oracle for share, oracle in zip(shares, exact, strict=True)]).sum(0)
    square = sum(share * float(oracle.square().sum()) for share, oracle in zip(shares, exact, strict=True))
    return [*([g.double() - oracle] for g, oracle in zip(gradients, exact, strict=True)), [mean]], square
