"""Gaps between methods, paired by seed: their mean, Student's interval, and which of many are not chance (Holm)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

LEVEL = 0.95
GRAIN = 1e-9


@dataclass(frozen=True)
class Gap:
    """Differences of pairs, one per seed: mean, half width of the interval and two-sided p.

    Both are None where the pairs do not spread, so that nothing can be said of chance: a single pair, or accuracies so
    coarse that all differences came out equal. Only where all are zero is that the answer: half 0, p 1.
    """

    mean: float
    half: float | None
    p: float | None
    pairs: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Gap:
    """`first` minus `second` over the seeds that both have; ValueError where there is none."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        raise ValueError("no seed in common")
    count = len(differences)
    mean = math.fsum(differences) / count
    if max(map(abs, differences)) < GRAIN:
        return Gap(0.0, 0.0, 1.0, count)
    if max(differences) - min(differences) < GRAIN:
        return Gap(mean, None, None, count)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    return Gap(mean, error * quantile(LEVEL, count - 1), 1 - within(abs(mean) / error, count - 1), count)


def within(t: float, freedom: int) -> float:
    """Probability that Student's t with so many degrees of freedom lies within -t..t; closed form by parity."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * k / (2 * k + 1)
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k - 1) / (2 * k)
    return sine * total


def quantile(level: float, freedom: int) -> float:
    """The t with `within(t) = level`, by bisection."""
    low, high = 0.0, 1.0
    while within(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def holm(found: Mapping[Hashable, float], level: float = 1 - LEVEL) -> set[Hashable]:
    """Which of these p values hold when all are looked at together (Holm, 1979)."""
    kept: set[Hashable] = set()
    for place, (name, p) in enumerate(sorted(found.items(), key=lambda pair: pair[1])):
        if p > level / (len(found) - place):
            break
        kept.add(name)
    return kept
