"""Runs that take turns, lap by lap, in one process: each lap of one has its neighbours' laps beside it in time.

Whatever else the machine does then disturbs all runs alike, and the ratio of two neighbouring laps means something
where the seconds do not.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

PATIENCE_S = 600.0


@dataclass(frozen=True)
class Lap:
    """Wall-clock and processor seconds of one lap; the latter leave out the time that other programs took."""

    wall_s: float
    cpu_s: float


class Lane:
    """One run: it calls `lap` between laps, once before the first and once after the last."""

    def __init__(self, track: list[Lane]) -> None:
        self.laps: list[Lap] = []
        self._track = track
        self._turn = threading.Semaphore(0)
        self._started: tuple[float, float] | None = None

    def lap(self) -> None:
        """End a lap, let every other lane do one, and begin the next."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._started is not None:
            self.laps.append(Lap(now - self._started[0], cpu - self._started[1]))
        self._track[(self._track.index(self) + 1) % len(self._track)].go()
        self._wait()
        self._started = time.perf_counter(), time.process_time()

    def go(self) -> None:
        """It is this lane's turn."""
        self._turn.release()

    def drive(self, run: Run) -> None:
        """Do the whole run, a lap at a time, and leave the track to the others."""
        self._wait()
        try:
            run(self)
        finally:
            place = self._track.index(self)
            self._track.remove(self)
            if self._track:
                self._track[place % len(self._track)].go()

    def _wait(self) -> None:
        if not self._turn.acquire(timeout=PATIENCE_S):
            raise TimeoutError(f"no turn in {PATIENCE_S:g} s: another lane hangs")


Run = Callable[[Lane], object]


def race(runs: Mapping[str, Run]) -> dict[str, list[Lap]]:
    """Laps of each run, all of them interleaved; raises what a run raised, once the others are done."""
    track: list[Lane] = []
    lanes = {name: Lane(track) for name in runs}
    track += lanes.values()
    with ThreadPoolExecutor(max_workers=len(lanes)) as threads:
        driven = [threads.submit(lane.drive, runs[name]) for name, lane in lanes.items()]
        track[0].go()
    for outcome in driven:
        outcome.result()
    return {name: lane.laps for name, lane in lanes.items()}


def shortest(races: Sequence[Mapping[str, list[Lap]]]) -> dict[str, list[Lap]]:
    """Of races in which lap i is the same work each time: the shortest times of each, which were disturbed least."""
    return {
        name: [
            Lap(min(lap.wall_s for lap in same), min(lap.cpu_s for lap in same))
            for same in zip(*(laps[name] for laps in races), strict=True)
        ]
        for name in races[0]
    }


@dataclass(frozen=True)
class Ratio:
    """Of paired laps: the median, the extremes, and the ratio of the summed processor seconds."""

    median: float
    low: float
    high: float
    cpu: float
    pairs: int


def ratio(over: Sequence[Lap], under: Sequence[Lap]) -> Ratio:
    """Pair by pair, the time of one lane over that of the other; for speeds, swap the two."""
    quotients = [a.wall_s / b.wall_s for a, b in zip(over, under, strict=True)]
    cpu = statistics.median(a.cpu_s / b.cpu_s for a, b in zip(over, under, strict=True))
    return Ratio(statistics.median(quotients), min(quotients), max(quotients), cpu, len(quotients))
