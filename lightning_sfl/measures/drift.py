"""Client drift: how far the halves travel from where they started in the round (after SCAFFOLD's analysis).

Not comparable across methods: learning rate, number of steps and gradient scale all enter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sfl.measures.gram import NAN, quotient


@dataclass(frozen=True)
class Drift:
    """traj: mean over halves of their mean squared distance from the start; traj_sw: the same over all steps alike.

    end, end_w: (weighted) mean squared distance at the end; update_sq: squared move of the merged half;
    norm: traj / update_sq; agg_residual: distance between the merged half's move and the weighted mean move.
    """

    traj: float
    traj_sw: float
    end: float
    end_w: float
    update_sq: float
    norm: float
    agg_residual: float


@dataclass(frozen=True)
class Path:
    """One half's way: sum of ||x_b - x_0||^2 over its measured steps, its steps, and ||x_end - x_0||^2."""

    square_sum: float
    steps: int
    end_square: float


def whole_sum(square_sum: float, steps: int, interval: int) -> float:
    """Estimate over all steps of a sum taken at every interval-th step; NaN when there was no such step."""
    return quotient(square_sum * steps, steps // interval)


def drift(paths: Sequence[Path], weights: Sequence[float], update_sq: float, agg_residual: float = NAN) -> Drift:
    """Over the halves that finished the round; `weights` sum to 1. Paths without a measured step are left out of
    traj.
    """
    moved = [path for path in paths if path.steps and not math.isnan(path.square_sum)]
    traj = _mean([path.square_sum / path.steps for path in moved])
    return Drift(
        traj=traj,
        traj_sw=quotient(math.fsum(path.square_sum for path in moved), sum(path.steps for path in moved)),
        end=_mean([path.end_square for path in paths]),
        end_w=math.fsum(w * path.end_square for w, path in zip(weights, paths, strict=True)) if paths else NAN,
        update_sq=update_sq,
        norm=quotient(traj, update_sq),
        agg_residual=agg_residual,
    )


def total(client: Drift, server: Drift) -> Drift:
    """Of both halves as one vector: squares add up; NaN wherever one half's value is."""
    sums = {name: value + getattr(server, name) for name, value in vars(client).items()}
    residual = math.hypot(client.agg_residual, server.agg_residual)
    return Drift(**{**sums, "norm": quotient(sums["traj"], sums["update_sq"]), "agg_residual": residual})


def _mean(values: Sequence[float]) -> float:
    return quotient(math.fsum(values), len(values))
