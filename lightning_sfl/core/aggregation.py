"""Merging states of several clients into one: the weighted average of FedAvg (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.state import State

Weighting = Literal["samples", "rows", "uniform"]
BufferPolicy = Literal["average", "first", "local"]


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights of sum 1. Only their ratios matter; none may be negative and some must be positive."""
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise ConfigError(f"aggregation weights {list(weights)} are not allowed: non-negative with a positive sum")
    return [weight / total for weight in weights]


@torch.no_grad()
def weighted_average(
    states: Sequence[State],
    weights: Sequence[float],
    buffers: Collection[str] = (),
    buffer_policy: BufferPolicy = "average",
) -> State:
    """Average of the states, summed in the order given.

    Floating tensors are averaged; integer ones (BatchNorm's `num_batches_tracked`) take the maximum over clients of
    positive weight. Names in `buffers` follow `buffer_policy`: averaged like the rest, or taken from the first state;
    with `local` averaged too, since what clients keep for themselves they have kept before.
    """
    shares = normalised(weights)
    contributing = [(state, share) for state, share in zip(states, shares, strict=True) if share > 0]
    merged: State = {}
    for name in states[0]:
        column = [(state[name], share) for state, share in contributing]
        first = column[0][0]
        if not first.is_floating_point():
            merged[name] = torch.stack([tensor for tensor, _ in column]).amax(dim=0)
        elif buffer_policy == "first" and name in buffers:
            merged[name] = first.clone()
        else:
            merged[name] = _weighted_sum(column)
    return merged


def _weighted_sum(column: Sequence[tuple[Tensor, float]]) -> Tensor:
    # from the first state on, so that states which agree (frozen layers, a single client) come out exactly as they are
    first = column[0][0]
    total = first.clone()
    for tensor, share in column[1:]:
        total.add_(tensor - first, alpha=share)
    return total
