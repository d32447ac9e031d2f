"""Uploads that arrive late, on a simulated clock: whom the server waits for, and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_sfl.core.errors import require
from lightning_sfl.core.randomness import stream


@dataclass(frozen=True)
class Stragglers:
    """Each upload takes a normal time, drawn for each client and round; nothing waits.

    Args:
        collect: wait for all, for the first `first`, or for `window_s` seconds (and for one at least).
        first: how many are waited for.
        window_s: how long is waited.
        mean_s: mean time of an upload.
        deviation_s: its standard deviation; times below zero count as zero.
    """

    collect: Literal["all", "first", "window"] = "all"
    first: int = 1
    window_s: float = 0.15
    mean_s: float = 0.1
    deviation_s: float = 0.05

    def __post_init__(self) -> None:
        ways = ("all", "first", "window")
        require(self.collect in ways, "stragglers.collect", self.collect, f"one of {', '.join(ways)}")
        require(self.first >= 1, "stragglers.first", self.first, "an integer >= 1")
        for key in ("window_s", "mean_s", "deviation_s"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"stragglers.{key}", value, "a finite number >= 0")

    def arrived(self, seed: int, round: int, clients: Sequence[int]) -> tuple[list[int], float]:
        """Positions in `clients` of those whose uploads count, in order, and the seconds waited."""
        draws = [stream(seed, "delay", round, client).normal(self.mean_s, self.deviation_s) for client in clients]
        delays = [max(0.0, float(delay)) for delay in draws]
        order = sorted(range(len(clients)), key=lambda i: delays[i])
        in_time = sum(delay <= self.window_s for delay in delays)
        count = {"all": len(order), "first": min(self.first, len(order)), "window": max(1, in_time)}[self.collect]
        last = delays[order[count - 1]]
        late = self.collect == "window" and count < len(order)
        return sorted(order[:count]), max(last, self.window_s) if late else last


ALL = Stragglers()
