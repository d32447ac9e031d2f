"""Soft clipping: updates that go too far, or too far from the mean, are drawn in instead of being left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sfl.core.aggregators.base import Reweighting, lengths, median
from lightning_sfl.core.errors import require


class _Clipping(Reweighting):
    """A limit in fixed terms, or in terms of what is usual in the round.

    Args:
        factor: the limit, as a multiple of the median over the round's clients.
        threshold: the limit itself, instead; null for the multiple.
    """

    def __init__(self, factor: float = 2.0, threshold: float | None = None) -> None:
        require(0 < factor < math.inf, "aggregator.factor", factor, "a finite number > 0")
        some = threshold is None or 0 < threshold < math.inf
        require(some, "aggregator.threshold", threshold, "a finite number > 0, or null")
        self.factor, self.threshold = factor, threshold

    def limit(self, values: Tensor) -> float:
        return self.factor * median(values) if self.threshold is None else self.threshold


class DeviationClipping(_Clipping):
    """The part of an update in which it differs from the weighted mean update is cut to a limit (Huber's rule).

    Args:
        factor: the limit, as a multiple of the median length of these parts over the round's clients.
        threshold: the limit itself, instead; null for the multiple.
    """

    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        along = products @ weights
        apart = (products.diagonal() - 2 * along + weights @ along).clamp(min=0).sqrt()
        limit = self.limit(apart)
        kept = torch.where(apart <= limit, 1.0, limit / apart)
        drawn = weights * kept
        return drawn + weights * (1 - drawn.sum())  # the mean update has the rest


class NormClipping(_Clipping):
    """An update of length d becomes limit * tanh(d / limit) long, and keeps its direction.

    Args:
        factor: the limit, as a multiple of the median length of the round's updates.
        threshold: the limit itself, instead; null for the multiple.
    """

    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        length = lengths(products)
        relative = length / self.limit(length)
        return weights * torch.where(relative > 0, relative.tanh() / relative, 1.0)
