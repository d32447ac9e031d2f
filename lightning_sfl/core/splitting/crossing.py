"""What a cut module returns: one tensor, or tensors nested in tuples, lists and dicts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class Refused(Exception):
    """This cut, or this way to make it, is impossible; the text is the reason. `final`: no other way need be tried."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The index path of every tensor in the structure, in order; () for a bare tensor."""
    if isinstance(value, Tensor):
        return [()]
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    return [(key, *rest) for key, child in items for rest in paths(child)]


def leaves(value: Any) -> list[Tensor]:
    """Every tensor in the structure, in the order of `paths`."""
    return [follow(value, path) for path in paths(value)]


def follow(value: Any, path: tuple[Any, ...]) -> Any:
    """The element at an index path."""
    for key in path:
        value = value[key]
    return value


def refill(value: Any, fillings: Iterator[Any]) -> Any:
    """The same structure with its tensors replaced, in order; everything that is not a tensor stays."""
    if isinstance(value, Tensor):
        return next(fillings)
    if isinstance(value, Mapping):
        filled = copy.copy(value)
        for key, child in value.items():
            filled[key] = refill(child, fillings)  # type: ignore[index]
        return filled
    if isinstance(value, (tuple, list)):
        children = [refill(child, fillings) for child in value]
        return type(value)(*children) if hasattr(value, "_fields") else type(value)(children)
    return value


def pack(tensors: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """What the client half returns: the tensor itself if there is only one, else a flat tuple."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def unpack(smashed: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """The inverse of `pack`."""
    return [smashed] if isinstance(smashed, Tensor) else list(smashed)
