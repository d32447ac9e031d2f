"""Curves of runs and the numbers read off them. What is not defined is None, never 0 and never NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_sfl.records.runs import Run

Point = tuple[float, float]

# axis -> the tag that counts along it; rounds count themselves
AXES: dict[str, str | None] = {
    "rounds": None,
    "server steps": "count/server_steps_total",
    "samples": "count/samples_main_total",
    "MB moved": "traffic/total_bytes",
}
SCALES = {"MB moved": 1e-6}


@dataclass(frozen=True)
class Spread:
    """A number over seeds: its mean, sample standard deviation (None for one seed), and how many of how many have it.

    Where a seed lacks the number there is no mean: the mean of the rest would be that of a choice.
    """

    mean: float | None
    sd: float | None
    known: int
    seeds: int


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return Spread(None, None, len(known), len(values))
    middle = math.fsum(known) / len(known)
    square = math.fsum((value - middle) ** 2 for value in known)
    sd = math.sqrt(square / (len(known) - 1)) if len(known) > 1 else None
    return Spread(middle, sd, len(known), len(values))


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """On straight lines between the sorted values, the smallest being at 0 and the largest at 1; None of nothing."""
    if not values:
        return None
    ordered, place = sorted(values), share * (len(values) - 1)
    below = min(int(place), max(0, len(ordered) - 2))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def last_mean(run: Run, tag: str, last: int) -> float | None:
    """Mean over the last so many rounds in which the tag was measured; None where there are fewer."""
    values = [value for _, value in run.series(tag)]
    return mean(values[-last:]) if len(values) >= last else None


def best(run: Run, tag: str) -> float | None:
    """The largest value of any round."""
    return max((value for _, value in run.series(tag)), default=None)


def points(run: Run, tag: str, axis: str = "rounds") -> dict[int, Point]:
    """Round -> (x, value) wherever both were measured; after the first round, which is round 0, `rounds` is 1."""
    along, scale = AXES[axis], SCALES.get(axis, 1.0)
    if along is None:
        return {round: (round + 1.0, value) for round, value in run.series(tag)}
    position = dict(run.series(along))
    return {round: (position[round] * scale, value) for round, value in run.series(tag) if round in position}


def curve(run: Run, tag: str, axis: str = "rounds") -> list[Point]:
    """(x, value) round by round."""
    return list(points(run, tag, axis).values())


def crossing(found: Sequence[Point], target: float) -> float | None:
    """Where the best value so far first reaches the target, on straight lines between rounds; None where it never does.

    Before the first round nothing is known, so a first round at or above the target is the crossing.
    """
    before, top = None, -math.inf
    for x, value in found:
        if value >= target:
            return x if before is None else before + (target - top) / (value - top) * (x - before)
        before, top = x, max(top, value)
    return None


def mean_curve(curves: Sequence[Mapping[int, Point]]) -> list[tuple[float, Spread]]:
    """(mean x, spread of y) of each round that all curves have."""
    shared = sorted(set.intersection(*(set(one) for one in curves)))
    found = [[one[round] for one in curves] for round in shared]
    return [(math.fsum(x for x, _ in here) / len(here), spread([y for _, y in here])) for here in found]
