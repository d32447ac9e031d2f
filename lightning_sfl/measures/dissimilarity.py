"""Gradient dissimilarity: how far what the server learns from lies from the data at large, the V value of GAS."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def gradient_dissimilarity(gradient: Sequence[Tensor], probes: Sequence[Sequence[Tensor]]) -> tuple[float, float]:
    """V and P * V, P being the number of parameter tensors: the squared distance of `gradient` from the probes' mean.

    gradient: of the server half on the batch it learns from, a tensor per parameter; probes: the same on each of some
    batches of all data, at the same weights and in evaluation mode.
    """
    total = 0.0
    for number, own in enumerate(gradient):
        mean = sum((probe[number].double() for probe in probes[1:]), probes[0][number].double()) / len(probes)
        total += float((own.double() - mean).square().sum())
    return total / len(gradient), total
