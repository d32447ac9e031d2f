"""Initial distance: how far apart the clients of one round start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.starts import Start, Visits, copied, difference, square, start_of
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
        self.anchor: list[Tensor] = []
        self.starts: dict[str, Start] = {}
        self.squares: list[Tensor] = []
        self.found: tuple[list[str], Distance] | None = None

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """The global half is the anchor."""
        self._forget()
        if self.due(event.round):
            self.anchor = copied(event.client_half)

    @torch.no_grad()
    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """How far from the anchor a client starts."""
        if self.anchor:
            start = start_of(event)
            self.starts[self.visits.start(event.slot, event.client_id)] = start
            self.squares.append(square(difference(start.client, self.anchor)))

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Only starts that differ from the anchor cost a Gram matrix."""
        if self.starts:
            away = torch.stack(self.squares).cpu().nonzero()[:, 0]
            starts = list(self.starts.values())
            rows = [difference(starts[i].client, self.anchor) for i in away.tolist()]
            products = torch.zeros(len(starts), len(starts), dtype=torch.float64)
            products[away[:, None], away[None, :]] = gram(rows).cpu()
            self.found = (list(self.starts), initial_distance(products, float(square(self.anchor).sqrt())))
        self.starts.clear()
        self.anchor = []

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
