"""Spearman's rank correlation, and how far it can be trusted at so few runs: its bootstrap interval."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from lightning_sfl.records.curves import quantile

SAMPLES = 1000


def ranks(values: Sequence[float]) -> list[float]:
    """From 1 on; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            found[place] = (start + end) / 2 + 1
        start = end + 1
    return found


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Correlation of the ranks, in [-1, 1]; None where all of one side are equal."""
    middle = (len(xs) + 1) / 2
    left, right = ([rank - middle for rank in ranks(side)] for side in (xs, ys))
    square = math.fsum(a * a for a in left) * math.fsum(b * b for b in right)
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / math.sqrt(square) if square else None


def interval(xs: Sequence[float], ys: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Percentile bootstrap over the pairs, the same every time; samples without a correlation are left out."""
    draw = random.Random(0)
    places = range(len(xs))
    found = []
    for _ in range(SAMPLES):
        chosen = draw.choices(places, k=len(xs))
        rho = spearman([xs[i] for i in chosen], [ys[i] for i in chosen])
        if rho is not None:
            found.append(rho)
    ends = [quantile(found, share) for share in ((1 - level) / 2, (1 + level) / 2)]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
