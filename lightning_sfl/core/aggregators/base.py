"""What all aggregation rules have in common, and the rule of FedAvg.

A rule is told states, the anchor and weights. The anchor is the merged state of the round before; a client's update is
its state minus the anchor, over all that it trained, both halves where it has both. Lengths and angles are those of
floating parameters; buffers, such as BatchNorm's statistics, have no say in them, but follow what a rule decides, so
that a client it leaves out has no part in the buffers either.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sfl.core.aggregation import BufferPolicy, normalised, weighted_average
from lightning_sfl.core.state import State

ROUNDING = 1e-12


class Aggregator(ABC):
    """Makes one state of several.

    least: the fewest states of which the rule can make one.
    needs_even_draws: whether the rule holds only where clients count by their samples and all are equally likely.
    looks_back: the option by which it goes by earlier merges, such as reference=previous; empty where it does not.
    remembered: what it keeps of them, by name; None before the first. It is in checkpoints; a new run begins without.
    """

    needs_even_draws: ClassVar[bool] = False
    looks_back: str = ""
    remembered: State | None = None

    @property
    def least(self) -> int:
        return 1

    def tell_rows(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Take note of the rows of each client that has any, before the first merge."""

    @abstractmethod
    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        """The merged state: new tensors, by the names of the states; `buffers` are the names that are no parameters."""


class WeightedAverage(Aggregator):
    """The average of the states with the weights that `weighting` gives them (FedAvg)."""

    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        return weighted_average(states, weights, buffers, buffer_policy)


class Reweighting(Aggregator):
    """A rule whose result is an average with other weights, which follow from lengths of updates and angles between."""

    @abstractmethod
    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        """Share of each state in the result, none negative; what they lack to 1 is the share of the anchor.

        products: (n, n) inner products of the updates; weights: (n,), of sum 1; all float64 on the host.
        """

    def stretch(self, products: Tensor, weights: Tensor, shares: Tensor) -> float:
        """How many times as long the resulting update is to be as these shares make it."""
        return 1.0

    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        products, plain = (
            inner_products(states, anchor, buffers),
            torch.tensor(normalised(weights), dtype=torch.float64),
        )
        shares = self.shares(products, plain)
        kept = 1 - math.fsum(shares.tolist())
        anchored = kept > ROUNDING
        joined = [*states, anchor] if anchored else states
        merged = weighted_average(joined, [*shares.tolist(), *([kept] if anchored else [])], buffers, buffer_policy)
        return stretched(merged, anchor, self.stretch(products, plain, shares), buffers)


@torch.no_grad()
def stretched(merged: State, anchor: State, factor: float, buffers: Collection[str] = ()) -> State:
    """The merged state with its update so many times as long; buffers and integers stay, as variances cannot."""
    if abs(factor - 1) <= ROUNDING:
        return merged
    fixed = {name for name, tensor in merged.items() if name in buffers or not tensor.is_floating_point()}
    return {
        name: tensor if name in fixed else anchor[name] + (tensor - anchor[name]) * factor
        for name, tensor in merged.items()
    }


@torch.no_grad()
def inner_products(states: Sequence[State], anchor: State, buffers: Collection[str] = ()) -> Tensor:
    """(n, n) inner products of the updates over all floating parameters, float64 on the host."""
    products = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name, origin in anchor.items():
        if name not in buffers and origin.is_floating_point():
            updates = torch.stack([state[name] for state in states]).double() - origin.double()
            flat = updates.flatten(1)
            products += (flat @ flat.T).cpu()
    return products


def lengths(products: Tensor) -> Tensor:
    """Lengths of the updates out of their inner products."""
    return products.diagonal().clamp(min=0).sqrt()


def median(values: Tensor) -> float:
    """The middle value; of an even number the mean of the two in the middle, where torch's own takes the lower."""
    return float(values.quantile(0.5))
