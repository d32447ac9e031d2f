"""Cosine weighting: updates that point where the others point count more, opposite ones not at all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_sfl.core.aggregation import BufferPolicy
from lightning_sfl.core.aggregators.base import ROUNDING, Reweighting, inner_products, lengths
from lightning_sfl.core.errors import require
from lightning_sfl.core.state import State

Reference = Literal["mean", "others", "previous"]


class CosineWeighted(Reweighting):
    """Weights times max(c, 0)^power, c being the cosine between a client's update and the weighted mean update.

    Where no client has any weight left, or the mean update that is compared with is 0, the plain weights hold. An
    update of length 0 has cosine 0.

    Args:
        power: 0 leaves the weights of clients with a positive cosine as they are; the larger, the stricter.
        temperature: weights times exp(c / temperature) instead of the power, so that nobody is left out; null for the
            power.
        reference: compare with the mean update of all participants, with that of the others, or with the server's
            previous update: the way that what is merged has gone since the merge before. Where there is none yet, or
            its length is 0, with the mean.
        preserve_norm: make the result as long as the mean update is; clients that agree would else make it longer.
    """

    def __init__(
        self,
        power: float = 1.0,
        temperature: float | None = None,
        reference: Reference = "mean",
        preserve_norm: bool = False,
    ) -> None:
        require(0 <= power < math.inf, "aggregator.power", power, "a finite number >= 0")
        warm = temperature is None or 0 < temperature < math.inf
        require(warm, "aggregator.temperature", temperature, "a finite number > 0, or null")
        known = reference in ("mean", "others", "previous")
        require(known, "aggregator.reference", reference, "mean, others or previous")
        self.power, self.temperature, self.reference = power, temperature, reference
        self.preserve_norm, self.looks_back = preserve_norm, "reference=previous" if reference == "previous" else ""
        self.previous: tuple[Tensor, Tensor] | None = None

    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        if self.looks_back:
            self.previous = self.along_previous(states, anchor, buffers)
            trained = [name for name in anchor if name not in buffers]
            self.remembered = {name: anchor[name].clone() for name in trained}
        return super().merge(states, anchor, weights, buffers, buffer_policy)

    def along_previous(
        self, states: Sequence[State], anchor: State, buffers: Collection[str]
    ) -> tuple[Tensor, Tensor] | None:
        """Inner products of the updates with the previous one, and its squared length; None where there is none."""
        if self.remembered is None:
            return None
        before = {name: tensor.to(anchor[name].device) for name, tensor in self.remembered.items()}
        products = -inner_products([*states, before], anchor, buffers)[-1]  # from here it is the way back
        square = -products[-1]
        return (products[:-1], square) if float(square) > ROUNDING**2 else None

    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        along, length = products @ weights, float((weights @ products @ weights).clamp(min=0).sqrt())
        if self.previous is None and length < ROUNDING:
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
        if self.previous is not None:
            along, squares = self.previous
        elif self.reference == "others":  # without its own share, which need not be rescaled to get an angle
            own = products.diagonal()
            squares = squares - 2 * weights * along + weights.square() * own
            along = along - weights * own
        bound = lengths(products) * squares.clamp(min=0).sqrt()
        return torch.where(bound > ROUNDING**2, along / bound, 0.0).clamp(-1, 1)
