"""Oracle distance: how far gradients lie from the gradient of the loss on all training rows, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_sfl.measures.gram import NAN, quotient
from lightning_sfl.measures.probe import cosine


@dataclass(frozen=True)
class OracleDistance:
    """G: weighted mean of ||g_i - g*||^2, which is bias + spread; G_rel: G / ||g*||^2; D_cos: 1 - cos(gbar, g*).

    bias: ||gbar - g*||^2, what averaging cannot mend; spread: weighted mean of ||g_i - gbar||^2, NaN with one gradient,
    whose distance is all bias; per_client: ||g_i - g*||^2, (n,).
    """

    G: float
    G_rel: float
    D_cos: float
    bias: float
    spread: float
    per_client: Tensor


def oracle_distance(gram: Tensor, weights: Tensor) -> OracleDistance:
    """From the Gram matrix (n + 1, n + 1) of the n differences g_i - g* and, last, g*; weights (n,) of sum 1."""
    differences, onto_oracle, oracle_square = gram[:-1, :-1], float(weights @ gram[:-1, -1]), float(gram[-1, -1])
    squares = differences.diagonal().clamp(min=0)
    mean_of_squares = float(weights @ squares)
    bias = max(0.0, float(weights @ differences @ weights))
    mean_square = bias + 2 * onto_oracle + oracle_square
    return OracleDistance(
        G=mean_of_squares,
        G_rel=quotient(mean_of_squares, oracle_square),
        D_cos=1 - cosine(onto_oracle + oracle_square, mean_square, oracle_square),
        bias=bias,
        spread=max(0.0, mean_of_squares - bias) if len(squares) > 1 else NAN,
        per_client=squares,
    )


def differences_from(gradients: list[Tensor], oracle: Tensor) -> list[list[Tensor]]:
    """Rows for the Gram matrix: each gradient minus the oracle, subtracted in float64, and the oracle itself."""
    exact = oracle.double()
    return [*([gradient.double() - exact] for gradient in gradients), [exact]]
