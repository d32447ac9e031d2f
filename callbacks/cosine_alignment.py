"""Cosine alignment and disagreement of the clients' updates, every client measured from its own start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.rows import Layers
from lightning_sfl.callbacks.trail import Trail, trail_of, update_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientEnd, ClientStart, RoundEnd, RoundStart
from lightning_sfl.measures.alignment import Alignment, alignment, cos_pair
from lightning_sfl.measures.disagreement import disagreement
from lightning_sfl.measures.gram import Weights, gram, weights_of
from lightning_sfl.measures.label_imbalance import main_label
from lightning_sfl.records.report import RoundReport


class CosineAlignment(Watcher):
    """Writes `align/*` and `disagree/*`; `align/cos_pair_server` only where clients have server copies of their own.

    Args:
        every: measure in every so many rounds, 0 for never.
        picture_every: show and record the matrix of cosines in every so many rounds, 0 for never.
        weights: how much each client counts: by rows trained on, as the aggregator has it, or all alike.
        layers: `layer/<name>/{cos_pair,norm_mean,A_ratio,A_null}` too, of each layer's part of the updates.
    """

    def __init__(
        self, every: int = 1, picture_every: int = 10, weights: Weights = "samples", layers: bool = False
    ) -> None:
        super().__init__(every)
        require(picture_every >= 0, "picture_every", picture_every, "an integer >= 0")
        self.picture_every = picture_every
        self.weights: Weights = weights
        self.by_layer = layers
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.trails: dict[int, tuple[Trail, Trail | None]] = {}
        self.updates: dict[str, Tensor] = {}
        self.server_updates: dict[str, Tensor] = {}
        self.shares: dict[str, tuple[int, float]] = {}
        self.grams: dict[str, Tensor] = {}
        self.layers: dict[str, Layers] = {}
        self.layer_grams: dict[str, Tensor] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Forget the round before."""
        self._forget()

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """Remember where the client starts."""
        if self.due(event.round):
            self.visits.start(event.slot, event.client_id)
            server = None if event.server_half is None else trail_of(event, event.server_half)
            self.trails[event.slot] = (trail_of(event, event.client_half), server)
            if self.by_layer and not self.layers:
                halves = {"client": event.client_half, "server": event.server_half}
                self.layers = {name: Layers(half) for name, half in halves.items() if half is not None}

    @torch.no_grad()
    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Keep its update; clients that did not finish, or trained on nothing, have none."""
        client, server = self.trails.pop(event.slot, (None, None))
        if client is None or not event.finished or not event.rows:
            return
        key = self.visits.of(event.slot, event.client_id)
        self.shares[key] = (event.rows, event.weight)
        self.updates[key] = update_of(event, client)
        if server is not None:
            self.server_updates[key] = update_of(event, server)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Reduce the updates to their Gram matrices."""
        for half, updates in {"client": self.updates, "server": self.server_updates}.items():
            if updates:
                self.grams[half] = gram([[update] for update in updates.values()])
                self._split(half, list(updates.values()))
            updates.clear()
        self.trails.clear()

    def _split(self, half: str, updates: list[Tensor]) -> None:
        """The Gram matrix of each layer's part; over the layers of a half they add up to that of the half."""
        if half in self.layers:
            layers = self.layers[half]
            pieces = [layers.split(update) for update in updates]
            self.layer_grams |= {name: gram([layers.of(name, piece) for piece in pieces]) for name in layers.places}

    def report(self, module: Any, report: RoundReport) -> None:
        """Scalars for both halves, vectors and the matrix for the client half."""
        if not self.grams:
            return
        report.schemes.add(self.weights)
        keys = list(self.shares)
        rows, aggregation = zip(*self.shares.values(), strict=True)
        weights = weights_of(self.weights, rows, aggregation)
        products = self.grams["client"].cpu()
        found = alignment(products, weights)
        report.scalar("align/cos_pair_client", found.cos_pair)
        report.scalar("align/cos_pair_nw", found.cos_pair_nw)
        report.scalar("align/norm_mean", found.norm_mean)
        report.scalar("align/n_valid", found.n_valid)
        if "server" in self.grams:
            report.scalar("align/cos_pair_server", cos_pair(self.grams["server"].cpu(), weights))
        for name, value in vars(disagreement(products, weights)).items():
            report.scalar(f"disagree/{name}", value)
        for layer, part in self.layer_grams.items():
            _report_layer(layer, part.cpu(), weights, report)
        self._report_clients(keys, found, report)
        if len(keys) > 1 and self.picture_every and report.round % self.picture_every == 0:
            labels = [main_label(module.population, int(key.split(".")[0])) for key in keys]
            report.matrix("align/cos_matrix", found.cos_matrix.tolist(), keys, labels)

    def _report_clients(self, keys: list[str], found: Alignment, report: RoundReport) -> None:
        fields = {"norm": found.norms, "cos_to_mean": found.cos_to_mean, "conflict": found.conflict}
        for field, values in fields.items():
            report.vector(f"align/{field}", values.tolist())
            report.clients(field, dict(zip(keys, values.tolist(), strict=True)))


def _report_layer(layer: str, products: Tensor, weights: Tensor, report: RoundReport) -> None:
    found, apart = alignment(products, weights), disagreement(products, weights)
    report.scalar(f"layer/{layer}/cos_pair", found.cos_pair)
    report.scalar(f"layer/{layer}/norm_mean", found.norm_mean)
    report.scalar(f"layer/{layer}/A_ratio", apart.A_ratio)
    report.scalar(f"layer/{layer}/A_null", apart.A_null)
