"""Traffic: bytes that crossed the cut and bytes of weights, by kind and direction."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import RoundEnd, RoundStart
from lightning_sfl.records.report import RoundReport


class Traffic(Watcher):
    """Writes `traffic/<kind>_<up|down>_bytes`, `traffic/up_bytes` and `traffic/down_bytes` of the round, and
    `traffic/total_bytes` of the run so far.

    Args:
        every: report in every so many rounds, 0 for never; the total counts all rounds all the same.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self.total_bytes = 0
        self.bytes: Counter[str] = Counter()

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Count from zero."""
        self.bytes = Counter({"up_bytes": 0, "down_bytes": 0})

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Take over what the boundary counted."""
        for (kind, direction), size in event.traffic_bytes.items():
            self.bytes[f"{kind}_{direction}_bytes"] += int(size)
            self.bytes[f"{direction}_bytes"] += int(size)
            self.total_bytes += int(size)

    def report(self, module: Any, report: RoundReport) -> None:
        """Bytes of the round and of the run."""
        if self.due(report.round):
            for name, size in self.bytes.items():
                report.scalar(f"traffic/{name}", size)
            report.scalar("traffic/total_bytes", self.total_bytes)

    def state_dict(self) -> dict[str, Any]:
        """The total so far."""
        return {"total_bytes": self.total_bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.total_bytes = state_dict["total_bytes"]
