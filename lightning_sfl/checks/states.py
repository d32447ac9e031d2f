"""Comparing states: which tensors differ by a bit, and by how much at most."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn


def kept(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal, or that only one of the states has."""
    names = one.keys() | other.keys()
    return sorted(n for n in names if n not in one or n not in other or not same_bits(one[n], other[n]))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal entry by entry, NaN being equal to itself."""
    return one.shape == other.shape and one.dtype == other.dtype and bool(((one == other) | (one != one)).all())


def furthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between two states; infinite where names or shapes differ or one is NaN."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return math.inf
    found = [(one[name].double() - other[name].double()).abs().max().item() for name in one if one[name].numel()]
    return max((math.inf if value != value else value for value in found), default=0.0)
