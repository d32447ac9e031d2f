"""Initial distance: how far apart the clients of one round start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import row_of, square
from lightning_sfl.callbacks.trail import Trail, trail_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientStart, RoundEnd, RoundStart
from lightning_sfl.measures.gram import gram
from lightning_sfl.measures.initial import InitialDistance as Distance
from lightning_sfl.measures.initial import initial_distance
from lightning_sfl.records.report import RoundReport


class InitialDistance(Watcher):
    """Writes `init/*`: exactly zero for methods whose clients all start from the global half.

    Args:
        every: measure in every so many rounds, 0 for never.
        buffers: `init/buf_dist` too, the same distance between the floating-point buffers of the start states, such as
            batch normalisation's running statistics, which are no part of the other tags.
    """

    def __init__(self, every: int = 1, buffers: bool = False) -> None:
        super().__init__(every)
        self.buffers = buffers
        self._forget()

    def check_method(self, method: Any) -> None:
        """There must be buffers to compare."""
        fits = not self.buffers or not self.every or bool(buffers_of(method.client_half))
        require(fits, "initial_distance.buffers", self.buffers, "false where the client half has no running statistics")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: the halves are there."""
        self.check_method(pl_module)

    def _forget(self) -> None:
        self.visits = Visits()
        self.anchor: Trail | None = None
        self.starts: dict[str, Trail] = {}
        self.stored: list[Tensor] = []
        self.found: tuple[list[str], Distance] | None = None
        self.buffer_distance: float | None = None

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
            if self.buffers:
                self.stored.append(row_of(buffers_of(event.client_half)))

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Only starts that differ from the anchor cost a Gram matrix."""
        if self.starts and self.anchor is not None:
            anchor = self.anchor.start
            products = _products([trail.start for trail in self.starts.values()], anchor)
            self.found = (list(self.starts), initial_distance(products, float(square(anchor).sqrt())))
            if self.stored:
                self.buffer_distance = initial_distance(_products(self.stored, self.stored[0]), 0.0).dist
        self.starts.clear()
        self.stored.clear()
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
        if self.buffer_distance is not None:
            report.scalar("init/buf_dist", self.buffer_distance)
        report.clients("init_offset", dict(zip(keys, found.offsets.tolist(), strict=True)))
        report.vector("init/offset", found.offsets.tolist())
        self.found = self.buffer_distance = None


def buffers_of(half: nn.Module) -> list[Tensor]:
    """Floating-point buffers, each once; counters of batches are whole numbers and no part of it."""
    return [buffer.detach() for buffer in half.buffers() if buffer.is_floating_point()]


def _products(starts: Sequence[Tensor], anchor: Tensor) -> Tensor:
    """Gram matrix of what the starts are from the anchor; those that equal it cost nothing."""
    away = [i for i, start in enumerate(starts) if not torch.equal(start, anchor)]
    products = torch.zeros(len(starts), len(starts), dtype=torch.float64)
    if away:
        places = torch.tensor(away)
        products[places[:, None], places[None, :]] = gram([[starts[i] - anchor] for i in away]).cpu()
    return products
