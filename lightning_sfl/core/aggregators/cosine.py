"""Cosine weighting: updates that point where the others point count more, opposite ones not at all."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_sfl.core.aggregators.base import ROUNDING, Reweighting, lengths
from lightning_sfl.core.errors import require


class CosineWeighted(Reweighting):
    """Weights times max(c, 0)^power, c being the cosine between a client's update and the weighted mean update.

    Where no client has any weight left, or the mean update is 0, the plain weights hold. An update of length 0 has
    cosine 0.

    Args:
        power: 0 leaves the weights of clients with a positive cosine as they are; the larger, the stricter.
        temperature: weights times exp(c / temperature) instead of the power, so that nobody is left out; null for the
            power.
        reference: compare with the mean update of all participants, or with that of the others.
        preserve_norm: make the result as long as the mean update is; clients that agree would else make it longer.
    """

    def __init__(
        self,
        power: float = 1.0,
        temperature: float | None = None,
        reference: Literal["mean", "others"] = "mean",
        preserve_norm: bool = False,
    ) -> None:
        require(0 <= power < math.inf, "aggregator.power", power, "a finite number >= 0")
        warm = temperature is None or 0 < temperature < math.inf
        require(warm, "aggregator.temperature", temperature, "a finite number > 0, or null")
        require(reference in ("mean", "others"), "aggregator.reference", reference, "mean or others")
        self.power, self.temperature, self.reference = power, temperature, reference
        self.preserve_norm = preserve_norm

    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        along, length = products @ weights, float((weights @ products @ weights).clamp(min=0).sqrt())
        if length < ROUNDING:
            return weights
        cosines = self.cosines(products, weights, along)
        if self.temperature is not None:
            cosines = cosines - cosines.max()  # cancels in the ratio, and keeps exp from overflowing
            scaled = weights * (cosines / self.temperature).exp()
        else:
            scaled = weights * torch.where(cosines > 0, cosines.clamp(min=0) ** self.power, 0.0)
        total = scaled.sum()
        return scaled / total if total > 0 else weights

    def stretch(self, products: Tensor, weights: Tensor, shares: Tensor) -> float:
        wanted, found = (float((each @ products @ each).clamp(min=0).sqrt()) for each in (weights, shares))
        return wanted / found if self.preserve_norm and found > ROUNDING else 1.0

    def cosines(self, products: Tensor, weights: Tensor, along: Tensor) -> Tensor:
        """Cosine of each update with the reference; `along`: inner products with the weighted mean update."""
        squares = (weights @ along).expand(len(weights))
        if self.reference == "others":  # without its own share, which need not be rescaled to get an angle
            own = products.diagonal()
            squares = squares - 2 * weights * along + weights.square() * own
            along = along - weights * own
        bound = lengths(products) * squares.clamp(min=0).sqrt()
        return torch.where(bound > ROUNDING**2, along / bound, 0.0).clamp(-1, 1)
