"""Stop before a NaN or an infinity reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every entry of these floating tensors is finite, with one look at each device.

    A norm that overflows although all entries are finite is looked at again entry by entry.
    """
    on: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        on.setdefault(tensor.device, []).append(tensor)
    return all(_all_finite(alike) for alike in on.values())


def _all_finite(tensors: list[Tensor]) -> bool:
    norms = torch._foreach_norm(tensors)  # what torch's own gradient clipping does
    total = sum(norm.item() for norm in norms) if norms[0].is_cpu else torch.stack(norms).sum().item()
    return math.isfinite(total) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def clip(modules: Iterable[nn.Module], max_norm: float) -> None:
    """Scale the gradients of these modules, taken together, down to this norm when they exceed it."""
    torch.nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], max_norm)
