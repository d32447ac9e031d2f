"""What it costs to watch: a run with the default callbacks and loggers against the same run with none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L

from benchmarks.lanes import Lane, Lap, Ratio, race, ratio, shortest
from benchmarks.report import Row
from benchmarks.workloads import State, Workload, furthest, run_ours
from lightning_sfl.callbacks import (
    DEFAULTS,
    GradientDissimilarity,
    OracleDistance,
    ProbeAlignment,
    RoundRecord,
    default_callbacks,
)
from lightning_sfl.callbacks.first_screen import FirstScreen
from lightning_sfl.trainer import run_loggers

PERIOD = 10  # the default callbacks do the same every ten rounds

# What is off by default, measured as if it were on in every round.
OPTIONAL = {
    "probe_alignment": partial(ProbeAlignment, source="test"),
    "oracle_distance": partial(OracleDistance, every=1),
    "oracle_distance_live": partial(OracleDistance, every=1, capture="live"),
    "gradient_dissimilarity": partial(GradientDissimilarity, every=1, source="test"),
}


def measure(work: Workload, apart: bool = True, repeats: int = 1) -> list[Row]:
    """Round times with all default callbacks over those with none; if `apart`, also what each adds to the record.

    Repeated runs do the same work round by round, so the shortest time of a round is the least disturbed one.
    """
    watchers = {name: watcher for name, watcher in DEFAULTS.items() if watcher is not RoundRecord}
    sets: dict[str, Callable[[], list[L.Callback]] | None] = {"none": None, "all": _defaults}
    if apart:
        sets["record"] = lambda: [RoundRecord()]
        sets |= {name: partial(_beside_record, watcher) for name, watcher in {**watchers, **OPTIONAL}.items()}
    work.data.setup()
    laps = shortest([_race(work, sets) for _ in range(repeats)])
    figure = "default callbacks and loggers: round time, with / without"
    rows = [Row(figure, amortised(laps, "all", "none"), "x", "<= 1.10")]
    if apart:
        rows.append(Row("  record and loggers alone", amortised(laps, "record", "none"), "x", ""))
        rows += [Row(f"  {name} and record / record", amortised(laps, name, "record"), "x", "") for name in watchers]
        title = "  {}, on request, in every round / record"
        rows += [Row(title.format(name), ratio(laps[name][1:], laps["record"][1:]), "x", "") for name in OPTIONAL]
    return rows


def _defaults() -> list[L.Callback]:
    return [callback for callback in default_callbacks(progress_bar=False) if not isinstance(callback, FirstScreen)]


def _beside_record(watcher: Callable[[], L.Callback]) -> list[L.Callback]:
    return [watcher(), RoundRecord()]


def _race(work: Workload, sets: Mapping[str, Callable[[], list[L.Callback]] | None]) -> dict[str, list[Lap]]:
    weights: dict[str, State] = {}
    with TemporaryDirectory() as folder:
        laps = race({name: partial(_run, work, name, make and make(), folder, weights) for name, make in sets.items()})
    for name, state in weights.items():
        if furthest(state, weights["none"]) != 0:
            raise AssertionError(f"watching with {name} changed the weights")
    return laps


def _run(
    work: Workload, name: str, chosen: Sequence[L.Callback] | None, folder: str, weights: dict[str, State], lane: Lane
) -> None:
    loggers = False if chosen is None else run_loggers(Path(folder), name)
    weights[name] = run_ours(work, lane, chosen or [], logger=loggers)


def amortised(laps: dict[str, list[Lap]], over: str, under: str) -> Ratio:
    """Pairs of whole periods' means: the median of the ordinary rounds, nine times, and of the rounds that come once.

    Round 0 warms up and is left out.
    """
    rare = [i for i in range(1, len(laps[over])) if i % PERIOD == 0]
    usual = [i for i in range(1, len(laps[over])) if i % PERIOD]
    parts = [ratio([laps[over][i] for i in of], [laps[under][i] for i in of]) for of in (usual, rare or usual)]
    shares = (1 - 1 / PERIOD, 1 / PERIOD)
    median, cpu = (
        sum(share * value for share, value in zip(shares, values, strict=True))
        for values in ([part.median for part in parts], [part.cpu for part in parts])
    )
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    return Ratio(median, low, high, cpu, sum(part.pairs for part in parts))
