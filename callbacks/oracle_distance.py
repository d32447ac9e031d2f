"""Oracle distance: how far the participants' gradients lie from the gradient on all clients' rows."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import row_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientBackward, ClientStart, RoundEnd, RoundStart, ServerBackward
from lightning_sfl.core.gradients import ROWS_AT_ONCE, BnMode, mean_gradient, trained_parameters, untouched
from lightning_sfl.core.randomness import stream
from lightning_sfl.measures.gram import gram, weights_of
from lightning_sfl.measures.oracle import differences_from, oracle_distance
from lightning_sfl.records.report import RoundReport

Capture = Literal["frozen", "live"]


class Running:
    """Mean over rows of the gradients of one client half, or one server half, in its steps of a round."""

    def __init__(self, half: nn.Module) -> None:
        self.parameters = trained_parameters(half)
        self.mean = torch.zeros_like(row_of(self.parameters), dtype=torch.float64)
        self.rows = 0
        self.steps = 0

    def add(self, rows: int) -> None:
        """The gradient that now stands in the half, the mean over so many rows."""
        row = row_of([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        self.rows, self.steps = self.rows + rows, self.steps + 1
        self.mean.lerp_(row.double(), rows / self.rows)


class OracleDistance(Watcher):
    """Writes `oracle/{client,server}_{G,G_rel,D_cos,bias,spread}` and `oracle/client_G_max`; G = bias + spread.

    The oracle is the gradient of the mean cross-entropy over all clients' rows where the round starts, whatever loss a
    method trains with. Costs a forward and a backward pass over these rows in each measured round, and with `frozen`
    one more over the participants' rows.

    Args:
        every: measure in every so many rounds, 0 for never.
        capture: `frozen` compares each participant's gradient on all its rows where the round starts; `live` what
            training met, the mean over a client's batches, wherever the halves then were and however scaled.
        batches: with `live`, the first so many steps of each half; null for all.
        max_rows: so many rows for the oracle, drawn once; null for all.
        bn_mode: batch normalisation uses its running statistics, or those of each 512 rows.
    """

    def __init__(
        self,
        every: int = 10,
        capture: Capture = "frozen",
        batches: int | None = None,
        max_rows: int | None = None,
        bn_mode: BnMode = "running",
    ) -> None:
        super().__init__(every)
        for key, value in {"batches": batches, "max_rows": max_rows}.items():
            require(value is None or value >= 1, f"oracle_distance.{key}", value, "an integer >= 1, or null")
        fits = batches is None or capture == "live"
        require(fits, "oracle_distance.batches", batches, "null where capture is frozen")
        self.capture: Capture = capture
        self.batches, self.max_rows = batches, max_rows
        self.bn_mode: BnMode = bn_mode
        self._forget()
        if every and capture == "live":  # attached only when wanted: nobody else should pay for events of every step
            self.on_client_backward = self._on_client_backward
            self.on_server_backward = self._on_server_backward

    def _forget(self) -> None:
        self.visits = Visits()
        self.oracle: dict[str, Tensor] = {}
        self.gradients: dict[str, dict[str, tuple[Tensor, float]]] = {"client": {}, "server": {}}
        self.running: dict[str, dict[str, Running]] = {"client": {}, "server": {}}
        self.grams: dict[str, Tensor] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """The oracle, and with `frozen` the participants' gradients, at the state the round starts from."""
        self._forget()
        if not self.due(event.round):
            return
        with untouched((event.client_half, event.server_half), self.bn_mode, module.population.x.device):
            everyone = np.sort(np.concatenate(module.population.rows))
            drawn = stream(module.seed, "oracle").permutation(len(everyone))[: self.max_rows]
            self.oracle = self._at(module, event, everyone[np.sort(drawn)])
            for client in dict.fromkeys(event.participants) if self.capture == "frozen" else ():
                own = module.population.rows[client]
                for half, gradient in self._at(module, event, own).items() if len(own) else ():
                    self.gradients[half][str(client)] = (gradient, len(own))

    def _at(self, module: Any, event: RoundStart, rows: np.ndarray) -> dict[str, Tensor]:
        """Gradients of both halves on these rows."""
        halves = (event.client_half, event.server_half)
        owned = [trained_parameters(half) for half in halves]
        found = mean_gradient(module.loss, halves, module.population, rows, [*owned[0], *owned[1]], ROWS_AT_ONCE)
        return {"client": row_of(found[: len(owned[0])]), "server": row_of(found[len(owned[0]) :])}

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """A visit begins."""
        self.visits.start(event.slot, event.client_id)

    @torch.no_grad()
    def _on_client_backward(self, module: Any, event: ClientBackward) -> None:
        """What each client is about to step with."""
        for turn in event.turns if self.oracle else ():
            self._add("client", self.visits.of(turn.slot, turn.client_id), turn.client_half, turn.rows)

    @torch.no_grad()
    def _on_server_backward(self, module: Any, event: ServerBackward) -> None:
        """What a server half is about to step with."""
        if self.oracle:
            self._add("server", str(event.branch), event.server_half, event.rows)

    def _add(self, half: str, key: str, module: nn.Module, rows: int) -> None:
        running = self.running[half].get(key) or self.running[half].setdefault(key, Running(module))
        if self.batches is None or running.steps < self.batches:
            running.add(rows)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Reduce the gradients to inner products."""
        for half, found in self.running.items():
            self.gradients[half].update({key: (one.mean, one.rows) for key, one in found.items()})
        for half, oracle in self.oracle.items():
            gradients = [gradient for gradient, _ in self.gradients[half].values()]
            if gradients and oracle.numel():
                self.grams[half] = gram(differences_from(gradients, oracle))
        self.oracle, self.running = {}, {"client": {}, "server": {}}

    def report(self, module: Any, report: RoundReport) -> None:
        """The scalars of both halves, and each client's distance."""
        for half, products in self.grams.items():
            rows = [rows for _, rows in self.gradients[half].values()]
            found = oracle_distance(products.cpu(), weights_of("samples", rows, rows))
            for name in ("G", "G_rel", "D_cos", "bias", "spread"):
                report.scalar(f"oracle/{half}_{name}", getattr(found, name))
            if half == "client":
                values = found.per_client.tolist()
                report.scalar("oracle/client_G_max", max(values))
                report.clients("oracle_G", dict(zip(self.gradients[half], values, strict=True)))
                report.vector("oracle/client_G", values)
        self._forget()
