"""Initial distance: how far apart the clients of one round start."""

from __future__ import annotations

from typing import Any

import torch

from lightning_sfl.callbacks.rows import square
from lightning_sfl.callbacks.trail import Trail, trail_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientStart, RoundEnd, RoundStart
from lightning_sfl.measures.gram import gram
from lightning_sfl.measures.initial import InitialDistance as Distance
from lightning_sfl.measures.initial import initial_distance
from lightning_sfl.records.report import RoundReport


class InitialDistance(Watcher):
    """Writes `init/*`: exactly zero for methods whose clients all start from the global half.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.anchor: Trail | None = None
        self.starts: dict[str, Trail] = {}
        self.found: tuple[list[str], Distance] | None = None

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """The global half is the anchor."""
        self._forget()
        if self.due(event.round):
            self.anchor = trail_of(event, event.client_half)

    @torch.no_grad()
    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """How far from the anchor a client starts."""
        if self.anchor is not None:
            self.starts[self.visits.start(event.slot, event.client_id)] = trail_of(event, event.client_half)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Only starts that differ from the anchor cost a Gram matrix."""
        if self.starts and self.anchor is not None:
            anchor = self.anchor.start
            starts = [trail.start for trail in self.starts.values()]
            away = [i for i, start in enumerate(starts) if not torch.equal(start, anchor)]
            products = torch.zeros(len(starts), len(starts), dtype=torch.float64)
            if away:
                places = torch.tensor(away)
                products[places[:, None], places[None, :]] = gram([[starts[i] - anchor] for i in away]).cpu()
            self.found = (list(self.starts), initial_distance(products, float(square(anchor).sqrt())))
        self.starts.clear()
        self.anchor = None

    def report(self, module: Any, report: RoundReport) -> None:
        """Distances of the round; the mean cosine of the offsets where there are offsets."""
        if self.found is None:
            return
        keys, found = self.found
        report.scalar("init/dist", found.dist)
        report.scalar("init/dist_rel", found.rel)
        if int((found.offsets > 0).sum()) > 1:
            report.scalar("init/cos", found.cos)
        report.clients("init_offset", dict(zip(keys, found.offsets.tolist(), strict=True)))
        report.vector("init/offset", found.offsets.tolist())
        self.found = None
