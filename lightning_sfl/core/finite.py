"""Stop before a NaN or an infinity reaches the weights, and say where it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lightning_sfl.core.errors import NonFiniteError


def check_loss(loss: Tensor, where: str) -> None:
    """Raise unless this scalar loss is finite; `where` names method, round, client and half."""
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"loss is {value} in {where}; nothing was updated with it")


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every entry is finite, with one look at the device."""
    return not tensors or math.isfinite(get_total_norm(tensors).item()) or all(bool(t.isfinite().all()) for t in tensors)


def check_tensors(tensors: Iterable[Tensor], what: str, where: str) -> None:
    """Raise unless all of these are finite; `what` they are is named in the message."""
    if not all_finite([t for t in tensors if t.is_floating_point()]):
        raise NonFiniteError(f"{what} is not finite in {where}; nothing was updated with it")


def clip(modules: Iterable[nn.Module], max_norm: float) -> None:
    """Scale the gradients of these modules, taken together, down to this norm when they exceed it."""
    torch.nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], max_norm)
