"""Speed against the plain per-client loop, which trains the same network on the same batches to the same weights."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.lanes import Lane, Lap, race, ratio
from benchmarks.report import Row
from benchmarks.workloads import TOLERANCE, State, Workload, furthest, run_ours, run_plain

DROPPED = 2
CHECKED_ROUNDS = 2


def measure(works: Sequence[Workload]) -> list[Row]:
    """One row for each workload: samples per second through the platform over those through the plain loop."""
    return [_measure(work) for work in works]


def _race(work: Workload) -> tuple[dict[str, list[Lap]], dict[str, State]]:
    weights: dict[str, State] = {}

    def ours(lane: Lane) -> None:
        weights["ours"] = run_ours(work, lane)

    def plain(lane: Lane) -> None:
        weights["plain"] = run_plain(work, lane)

    return race({"ours": ours, "plain": plain}), weights


def _apart(work: Workload) -> float:
    """How far apart the two loops end, in double precision: training multiplies what single precision rounds away."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        _, weights = _race(work)
    finally:
        torch.set_default_dtype(usual)
    return furthest(weights["ours"], weights["plain"])


def _measure(work: Workload) -> Row:
    work.data.setup()
    apart = _apart(replace(work, rounds=min(work.rounds, CHECKED_ROUNDS)))
    if not apart <= TOLERANCE:
        raise AssertionError(f"{work.name}: the two loops end {apart:.3g} apart, so their speeds are not comparable")
    laps, _ = _race(work)
    rows = [sum(plan.num_rows) for plan in work.plans()]
    kept = slice(DROPPED if work.rounds > 2 * DROPPED else 0, None)
    found = ratio(laps["plain"][kept], laps["ours"][kept])
    details: dict[str, Any] = {
        "rounds": work.rounds, "weights_apart": apart,
        **{f"{lane}_samples_per_s": statistics.median(n / lap.wall_s for n, lap in zip(rows, times, strict=True))
           for lane, times in laps.items()},
        **{f"{lane}_round_cpu_s": statistics.median(lap.cpu_s for lap in times[kept]) for lane, times in laps.items()},
    }  # fmt: skip
    return Row(f"{work.name}: speed, ours / plain loop", found, "x", work.aim, details)
