"""Clients with F_k = a_k (w - b_k)^2 / 2, for methods whose rounds can then be told in closed form."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_sfl.methods import SplitMethod
from tests.tiny import Rows, stretches


class Residual(nn.Module):
    """sqrt(a) (w - b), from rows (sqrt(a), -sqrt(a) b)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.w + x[:, 1:]


class Idle(nn.Module):
    """Passes its input on; its one parameter has a gradient of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, residual: Tensor) -> Tensor:
        return residual + 0 * self.z


def half_square(self: SplitMethod, logits: Tensor, labels: Tensor) -> Tensor:
    """In place of the loss of the method."""
    return logits.square().mean() / 2


def line(start: float) -> nn.Sequential:
    """The network, to be cut after `lower`."""
    return nn.Sequential(OrderedDict(lower=Residual(start), upper=Idle()))


def clients(a: Sequence[float], b: Sequence[float], sizes: Sequence[int] | None = None) -> Rows:
    """Client k has sizes[k] equal rows, one by default."""
    sizes = [1] * len(a) if sizes is None else sizes
    roots = torch.tensor(a, dtype=torch.float64).sqrt()
    x = torch.stack([roots, -roots * torch.tensor(b, dtype=torch.float64)], dim=1)
    x = x.repeat_interleave(torch.tensor(sizes), dim=0)
    return Rows(x, torch.zeros(len(x), dtype=torch.long), stretches(sizes), num_classes=1)
