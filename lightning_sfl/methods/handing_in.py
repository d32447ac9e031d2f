"""What clients that do not wait for each other hand in: how late each is, what counts, and how it is merged."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.staleness import Constant, HandedIn, Staleness
from lightning_sfl.core.visits import Visits
from lightning_sfl.methods.base import SplitMethod


class HandingIn(SplitMethod):
    """Collects what is handed in one by one; by default its average is taken as it is, late ones counting less.

    What is dropped fills no buffer and makes no round; it has been sent all the same, and watchers are told of a client
    that did not finish. A client that comes after the last merge is never late, so no round waits for ever.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        staleness: how much less a client counts in the merge, the more merges it has missed; null for no difference.
        max_staleness: what a client hands in that has missed more merges than this is dropped, and counted as
            `staleness/dropped` (FedScale, Lai et al., ICML 2022, has 5); null for never.
        kwargs: options of `SplitMethod`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        staleness: Staleness | None = None,
        max_staleness: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        require(max_staleness is None or max_staleness >= 0, "max_staleness", max_staleness, "an integer >= 0, or null")
        self.staleness, self.max_staleness = staleness or Constant(), max_staleness
        self.handed_in: list[HandedIn] = []
        self.missed: list[int] = []
        self.dropped = 0
        self.visits: Visits | None = None

    def take_in(self, slot: int, weight: float) -> None:
        """Keep what a client hands in for the merge."""
        state = {name: tensor.clone() for name, tensor in self.handed_in_by(slot).items()}
        self.handed_in.append(HandedIn(slot, state, weight, self.visits.missed(slot), self.visits.in_slot[slot].client))
        self.missed.append(self.visits.missed(slot))

    def merge(self, plan: Plan) -> None:
        weights = [each.weight * self.staleness.factor(each.missed) for each in self.handed_in]
        self.put_together([each.state for each in self.handed_in], weights, [each.client for each in self.handed_in])
        self.handed_in.clear()
        self.count_merge()

    def count_merge(self) -> None:
        """There is a new version of what is merged."""
        self.visits.counts["merges"] += 1

    def scalars(self) -> dict[str, float]:
        mean, most = sum(self.missed) / len(self.missed), float(max(self.missed))
        dropped = {} if self.max_staleness is None else {"staleness/dropped": float(self.dropped)}
        return {"clock/sim_time_s": self.visits.finished_s, "staleness/mean": mean, "staleness/max": most, **dropped}
