"""Closed forms that the experiments are held against. Directions are unit vectors, isotropic and independent.

K directions in D dimensions; shares of squared norms are relative to the true gradient's.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def cosine(k: float, d: float) -> float:
    """Mean cosine between the estimate and the gradient; for k << d nearly sqrt(k / d)."""
    return math.sqrt(k / (k + d - 1))


def cosine_deviation(k: float, d: float) -> float:
    """Relative standard deviation of that cosine over draws."""
    return math.sqrt(d / (d + k)) / math.sqrt(2 * k)


def squared_error(k: float, d: float) -> float:
    """Mean ||estimate - g||^2 / ||g||^2 of the unbiased scale; with k * t for the mean of t estimates."""
    return (d - 1) / k


def contraction(k: float, d: float) -> float:
    """Factor on the loss of an isotropic quadratic per step of the best size."""
    return 1 - k / (k + d - 1)


def trimming_bias(trim: float) -> float:
    """kappa in E[estimate] = kappa g when a share `trim` of distinct directions is dropped at each end, K -> inf."""
    z = NormalDist().inv_cdf(1 - trim)
    return 1 - 2 * z * NormalDist().pdf(z) / (1 - 2 * trim)


def trimming_cosine(trim: float) -> float:
    """What that trimming multiplies the cosine by, for K << D."""
    return math.sqrt((1 - 2 * trim) * trimming_bias(trim))


def captured(gamma: float, k: float, rank: float) -> float:
    """Mean squared error of k random directions inside a subspace of this rank that holds a share gamma."""
    return gamma * (rank - 1) / k + 1 - gamma


def variance_ratio(c: float, count: int) -> float:
    """||mean - g_i||^2 / ||g_i||^2 of `count` gradients of equal length with pairwise cosine c."""
    return (1 - c) * (1 - 1 / count)


def span_cosine(c: float, others: int) -> float:
    """Cosine of one such gradient with the span of so many others."""
    return math.sqrt(others * c * c / (1 + (others - 1) * c))


def mean_cosine(c: float, others: int) -> float:
    """Cosine of one such gradient with the mean of so many others."""
    return c / math.sqrt(c + (1 - c) / others)


def average_cosine(c: float, beta: float) -> float:
    """Cosine of one such gradient with an exponential moving average of those before it."""
    return c / math.sqrt(c + (1 - c) * (1 - beta) / (1 + beta))
