"""Probe alignment: whether the clients' updates, and the server's, go where the loss on held-out rows falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.probe_choice import ProbeChoice
from lightning_sfl.callbacks.probe_rows import ProbeSource
from lightning_sfl.callbacks.rows import row_of
from lightning_sfl.callbacks.trail import Trail, trail_of, update_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientEnd, ClientStart, RoundEnd, RoundStart
from lightning_sfl.core.gradients import ROWS_AT_ONCE, BnMode, mean_gradient, trained_parameters, untouched
from lightning_sfl.core.population import Population
from lightning_sfl.measures.gram import Weights, gram, weights_of
from lightning_sfl.measures.probe import cosine, distance_of, probe_alignment
from lightning_sfl.records.report import RoundReport


class ProbeAlignment(Watcher):
    """Writes `probe/B_{client,server,full}`, `probe/C_client` and `probe/reversal`: 0 is downhill, above 1 uphill.

    `probe/C_client_own` measures each client at its own start, where starts differ. Costs a forward and a backward
    pass over the probe in each measured round, and one more for each client with a start of its own.

    Args:
        every: measure in every so many rounds, 0 for never.
        source: probe with held-out rows, or with the test set, as the reference does.
        max_rows: so many of them, drawn once; null for all.
        index_file: these rows of the split instead, counted from 0, whatever max_rows: a .json file with a list, or an
            object with one under indices, probe_indices or q_indices; or a .txt file with a number in a line. Numbers
            that are negative, past the end or there already are dropped, which is said.
        balanced: of each class as many of the max_rows rows as of any other, as far as it has so many.
        weights: how much each client counts: by rows trained on, as the aggregator has it, or all alike.
        bn_mode: batch normalisation uses its running statistics, or those of each 512 rows of the probe.
    """

    def __init__(
        self,
        every: int = 1,
        source: ProbeSource = "val",
        max_rows: int | None = 1000,
        weights: Weights = "samples",
        bn_mode: BnMode = "running",
        index_file: str | None = None,
        balanced: bool = False,
    ) -> None:
        super().__init__(every)
        self.choice = ProbeChoice("probe_alignment", source, max_rows, index_file, balanced)
        self.weights: Weights = weights
        self.bn_mode: BnMode = bn_mode
        self.rows: Population
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.halves: tuple[nn.Module, nn.Module] | None = None
        self.probes: list[Tensor] = []
        self.anchors: list[Trail] = []
        self.trails: dict[int, tuple[Trail, Tensor]] = {}
        self.shares: dict[str, tuple[int, float]] = {}
        self.updates: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}
        self.products: list[Tensor] = []

    def check(self, data: Any) -> None:
        """There must be rows to probe with."""
        if self.every:
            self.choice.check(data)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: draw the probe, before any training."""
        if self.every and not self.idle:
            self.rows = self.choice.draw(pl_module)

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Minus the gradients at the state the round starts from."""
        self._forget()
        if self.due(event.round):
            self.halves = (event.client_half, event.server_half)
            self.anchors = [trail_of(event, half) for half in self.halves]
            self.probes = self._probe(module, self.halves)

    def _probe(self, module: Any, halves: Sequence[nn.Module]) -> list[Tensor]:
        """Minus the gradient of each of these halves on the probe."""
        owned = [trained_parameters(half) for half in halves]
        over, (rows,) = [*owned[0], *owned[1]], self.rows.rows
        with untouched(halves, self.bn_mode, self.rows.x.device):
            found = mean_gradient(module.loss, halves, self.rows, rows, over, ROWS_AT_ONCE)
        return [row_of(found[: len(owned[0])]).neg_(), row_of(found[len(owned[0]) :]).neg_()]

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """Where a client starts; a probe of its own where that is not the global half."""
        if self.halves is None:
            return
        self.visits.start(event.slot, event.client_id)
        trail, probe = trail_of(event, event.client_half), self.probes[0]
        if not torch.equal(trail.start, self.anchors[0].start):
            probe = self._probe(module, (event.client_half, self.halves[1]))[0]
        self.trails[event.slot] = (trail, probe)

    @torch.no_grad()
    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Keep its update, and the update's angle with its own probe."""
        started = self.trails.pop(event.slot, None)
        if started is None or not event.finished or not event.rows:
            return
        trail, probe = started
        key, update = self.visits.of(event.slot, event.client_id), update_of(event, trail)
        self.shares[key], self.updates[key] = (event.rows, event.weight), update
        if probe is not self.probes[0]:
            self.own[key] = gram([[update], [probe]])

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Reduce the updates, the server's move and the probes to inner products."""
        if self.halves is not None and self.updates:
            move = update_of(event, self.anchors[1])
            rows = [*self.updates.values(), self.probes[0]]
            self.products = [gram([[row] for row in rows]), gram([[move], [self.probes[1]]])]
        self.updates, self.trails, self.halves, self.anchors = {}, {}, None, []

    def report(self, module: Any, report: RoundReport) -> None:
        """The scalars, and each client's cosine with the probe."""
        if not self.products:
            return
        client, server = (products.cpu() for products in self.products)
        weights = weights_of(self.weights, *zip(*self.shares.values(), strict=True))
        found = probe_alignment(client, weights)
        report.schemes.add(self.weights)
        report.scalar("probe/B_client", found.B)
        report.scalar("probe/C_client", found.C)
        report.scalar("probe/B_server", 1 - cosine(*_pair(server)))
        both = [one + other for one, other in zip(_mean(client, weights), _pair(server), strict=True)]
        report.scalar("probe/B_full", 1 - cosine(*both))
        if found.B == found.B:
            report.scalar("probe/reversal", int(found.B > 1))
        if self.own:
            report.scalar("probe/C_client_own", distance_of(self._own_cosines(found.cosines), weights))
        report.clients("probe_cos", dict(zip(self.shares, found.cosines.tolist(), strict=True)))
        report.vector("probe/cos", found.cosines.tolist())
        self._forget()

    def _own_cosines(self, shared: Tensor) -> Tensor:
        """Each client's cosine with the probe at its own start, which is the shared one where no other was taken."""
        return torch.tensor(
            [
                cosine(*_pair(self.own[key].cpu())) if key in self.own else value
                for key, value in zip(self.shares, shared.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )


def _pair(products: Tensor) -> tuple[float, float, float]:
    """Of two vectors' Gram matrix: the inner product and both squares."""
    return float(products[0, 1]), float(products[0, 0]), float(products[1, 1])


def _mean(products: Tensor, weights: Tensor) -> tuple[float, float, float]:
    """The same of the weighted mean of all but the last row, and the last."""
    product, square = weights @ products[:-1, -1], weights @ products[:-1, :-1] @ weights
    return float(product), float(square), float(products[-1, -1])
