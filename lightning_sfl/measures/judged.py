"""How good a network is on some rows, and how that differs between clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import nn

from lightning_sfl.core.gradients import ROWS_AT_ONCE, Loss, untouched
from lightning_sfl.core.population import Population


@dataclass(frozen=True)
class Judgement:
    """Mean loss and share of right answers over so many rows."""

    loss: float
    acc: float
    rows: int


@dataclass(frozen=True)
class Spread:
    """Of a number that several clients have: mean weighted by rows, the worst, standard deviation, all alike."""

    mean: float
    worst: float
    std: float


@torch.no_grad()
def judged(loss: Loss, halves: Sequence[nn.Module], one: Population) -> Judgement:
    """The halves, run one after the other in evaluation mode, on the rows of one client, of which there are some.

    loss: mean over all labels, of (logits (rows, ..., classes), labels (rows, ...)). Nothing is changed.
    """
    device, (rows,) = one.y.device, one.rows
    losses = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    labels_met = 0
    with untouched(halves, "running", device):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            x, labels = one.take(rows[start : start + ROWS_AT_ONCE])
            for half in halves:
                x = half(x)
            labels = labels.to(x.device)
            losses += loss(x, labels).double().to(device) * labels.numel()
            right += (x.argmax(-1) == labels).sum().to(device)
            labels_met += labels.numel()
    return Judgement(float(losses) / labels_met, int(right) / labels_met, len(rows))


def spread(values: Sequence[float], rows: Sequence[int], worst: bool) -> Spread:
    """Over at least one client; worst: whether the largest value is the worst, as of a loss."""
    total = math.fsum(rows)
    mean = math.fsum(value * count / total for value, count in zip(values, rows, strict=True))
    return Spread(mean, max(values) if worst else min(values), pstdev(values, fmean(values)))
