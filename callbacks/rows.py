"""Halves as rows: all trainable parameters of a half in one stretch of memory, which few calls measure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

PIECE = 1 << 16  # a longer norm in single precision loses digits


class Row:
    """Room for some tensors: one flat stretch, and the same memory in the tensors' own shapes."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        first = tensors[0] if tensors else torch.empty(0)
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors], first.dtype)
        sizes = [tensor.numel() for tensor in tensors]
        self.flat = torch.empty(sum(sizes), dtype=dtype, device=first.device)
        self.tensors = [part.view(t.shape) for part, t in zip(self.flat.split(sizes), tensors, strict=True)]
        self.pieces = self.flat.split(PIECE)


def copy_into(rows: Sequence[Row], halves: Sequence[Sequence[Tensor]]) -> None:
    """Write the tensors of each half into its row, in one call for all."""
    targets = [tensor for row in rows for tensor in row.tensors]
    if targets:
        torch._foreach_copy_(targets, [tensor for half in halves for tensor in half])


def copied(tensors: Sequence[Tensor]) -> Row:
    """A copy of these tensors."""
    row = Row(tensors)
    copy_into([row], [tensors])
    return row


def subtract(rows: Sequence[Row], others: Sequence[Row]) -> None:
    """rows[i] -= others[i]."""
    torch._foreach_sub_([row.flat for row in rows], [other.flat for other in others])


def norms(rows: Sequence[Row]) -> list[Tensor]:
    """The norm of each row, on the device."""
    found = iter(torch._foreach_norm([piece for row in rows for piece in row.pieces]))
    return [_joined([next(found) for _ in row.pieces]) for row in rows]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).double().square().sum().sqrt()


def square(flat: Tensor) -> Tensor:
    """Squared norm in float64, on the device."""
    return torch.stack(torch._foreach_norm(flat.split(PIECE))).double().square().sum()
