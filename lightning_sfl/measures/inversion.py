"""Inversion: inputs are moved until what they would give matches what has been seen of a client.

L. Zhu, Z. Liu, S. Han, "Deep Leakage from Gradients", NeurIPS 2019; the match by cosine, and Adam on it: J. Geiping, H.
Bauermeister, H. Droege, M. Moeller, "Inverting Gradients", NeurIPS 2020. Labels are taken as known. It is one attack,
of modest strength: what it cannot rebuild, a better one might.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RATE = 0.1


def invert(
    view: Callable[[Tensor], Tensor],
    target: Tensor,
    starts: Sequence[Tensor],
    bounds: tuple[float, float],
    steps: int,
    by_cosine: bool = True,
    told: Callable[[], None] = lambda: None,
) -> Tensor:
    """The inputs (rows, ...) whose view is nearest to the target (numbers,), of those found from the given starts.

    Args:
        view: what inputs give, differentiable in them.
        target: what was seen; compared by directions, numbers that are 0 in it count as not sent.
        starts: where to begin.
        bounds: smallest and largest number an input may have.
        steps: of Adam, from each start; its rate falls to 0 as a half cosine.
        by_cosine: compare directions only; else the values themselves.
        told: called after each step.
    """
    sent = target != 0 if by_cosine else torch.ones_like(target, dtype=torch.bool)
    found: list[tuple[float, Tensor]] = []
    for start in starts:
        x = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=RATE * (bounds[1] - bounds[0]))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            (x.grad,) = torch.autograd.grad(_apart(view(x)[sent], target[sent], by_cosine), x)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                x.clamp_(*bounds)
            told()
        apart = float(_apart(view(x)[sent], target[sent], by_cosine).detach())
        found.append((apart if math.isfinite(apart) else math.inf, x.detach()))
    return min(found, key=lambda pair: pair[0])[1]


def _apart(one: Tensor, other: Tensor, by_cosine: bool) -> Tensor:
    if by_cosine:
        return 1 - torch.nn.functional.cosine_similarity(one, other, dim=0)
    return (one - other).square().mean()


def relative_error(found: Tensor, labels: Tensor, true: Tensor, true_labels: Tensor, mean: Tensor) -> float:
    """How far the true rows are from the nearest found row of their label: 0 found, 1 no better than the mean row.

    The mean over the true rows of the distance, over their root mean squared distance from `mean`. Rows found for
    others of the same label count as well: who is attacked does not mind which copy is right.
    """
    distances = torch.cdist(true.flatten(1), found.flatten(1))
    distances = distances.masked_fill(true_labels[:, None] != labels[None, :], torch.inf)
    scale = (true - mean).flatten(1).square().sum(dim=1).mean().sqrt()
    return float(distances.amin(dim=1).mean() / scale)
