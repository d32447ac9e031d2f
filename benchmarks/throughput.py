"""Speed against the plain per-client loop, which trains the same network on the same batches to the same weights."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.lanes import Lane, race, ratio
from benchmarks.report import Row
from benchmarks.workloads import TOLERANCE, State, Workload, furthest, run_ours, run_plain

DROPPED = 2


def measure(works: Sequence[Workload]) -> list[Row]:
    """One row for each workload: samples per second through the platform over those through the plain loop."""
    return [_measure(work) for work in works]


def _measure(work: Workload) -> Row:
    weights: dict[str, State] = {}

    def ours(lane: Lane) -> None:
        weights["ours"] = run_ours(work, lane)

    def plain(lane: Lane) -> None:
        weights["plain"] = run_plain(work, lane)

    work.data.setup()
    laps = race({"ours": ours, "plain": plain})
    apart = furthest(weights["ours"], weights["plain"])
    if not apart <= TOLERANCE:
        raise AssertionError(f"{work.name}: the two loops end {apart:.3g} apart, so their speeds are not comparable")
    rows = [sum(plan.num_rows) for plan in work.plans()]
    kept = slice(DROPPED if work.rounds > 2 * DROPPED else 0, None)
    found = ratio(laps["plain"][kept], laps["ours"][kept])
    details: dict[str, Any] = {
        "rounds": work.rounds, "weights_apart": apart,
        **{f"{lane}_samples_per_s": statistics.median(n / lap.wall_s for n, lap in zip(rows, times, strict=True))
           for lane, times in laps.items()},
        **{f"{lane}_round_cpu_s": statistics.median(lap.cpu_s for lap in times[kept]) for lane, times in laps.items()},
    }  # fmt: skip
    return Row(f"{work.name}: speed, ours / plain loop", found, "x", ">= 1", details)
