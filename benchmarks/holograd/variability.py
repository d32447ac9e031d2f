"""How much mini-batch gradients have in common, from their Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_of(gradients: Tensor) -> Tensor:
    """Inner products (n, n) of gradients (n, size), float64."""
    rows = gradients.double()
    return rows @ rows.T


def pairwise_cosine(gram: Tensor) -> float:
    """Mean cosine over all pairs."""
    norms = gram.diagonal().sqrt()
    cosines = gram / torch.outer(norms, norms)
    n = len(gram)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


def variance_ratio(gram: Tensor) -> float:
    """Mean of ||g_i - mean||^2 over mean of ||g_i||^2."""
    mean = float(gram.diagonal().mean())
    return (mean - float(gram.mean())) / mean


def span_cosine(gram: Tensor) -> float:
    """Mean over i of the cosine between g_i and the span of all the others."""
    found = []
    for i in range(len(gram)):
        others = [j for j in range(len(gram)) if j != i]
        cross = gram[others, i]
        # a row may be drawn twice, and gradients at the end of training may vanish: then the others are dependent
        inside = cross @ torch.linalg.pinv(gram[others][:, others], rtol=1e-9, hermitian=True) @ cross
        found.append((float(inside) / float(gram[i, i])) ** 0.5)
    return sum(found) / len(found)


def mean_cosine(gram: Tensor) -> float:
    """Mean over i of the cosine between g_i and the mean of all the others."""
    total = gram.sum(1)
    cross = total - gram.diagonal()
    square = gram.sum() - 2 * total + gram.diagonal()
    return float((cross / (square * gram.diagonal()).sqrt()).mean())


def average_cosine(gram: Tensor, beta: float, burn: int) -> float:
    """Mean over i >= burn of the cosine between g_i and the exponential moving average of those before it."""
    found = []
    for i in range(burn, len(gram)):
        weights = (1 - beta) * beta ** torch.arange(i - 1, -1, -1, dtype=torch.float64)
        cross = weights @ gram[:i, i]
        square = weights @ gram[:i, :i] @ weights
        found.append(float(cross / (square * gram[i, i]).sqrt()))
    return sum(found) / len(found)
