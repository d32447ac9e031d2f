"""Oracle distance: how far the participants' gradients lie from the gradient on all clients' rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.cut_shift import CutShift, sent_along
from lightning_sfl.callbacks.rows import row_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientBackward, ClientStart, CutGradient, RoundEnd, RoundStart, ServerBackward
from lightning_sfl.core.gradients import ROWS_AT_ONCE, BnMode, mean_gradient, trained_parameters, untouched
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.state import state_of
from lightning_sfl.measures.gram import gram, weights_of
from lightning_sfl.measures.oracle import differences_from, differences_from_own, oracle_distance
from lightning_sfl.records.report import RoundReport

Capture = Literal["frozen", "live"]
Scope = Literal["global", "individual"]


class Running:
    """Mean over rows of the gradients of one half, or at one client's cut, in the steps of a round."""

    def __init__(self) -> None:
        self.mean = torch.zeros(0)
        self.rows = 0
        self.steps = 0

    def add(self, gradient: Tensor, rows: int) -> None:
        """One more, itself the mean over so many rows."""
        self.rows, self.steps = self.rows + rows, self.steps + 1
        exact = gradient.double()
        self.mean = exact if self.steps == 1 else self.mean.lerp_(exact, rows / self.rows)


class OracleDistance(Watcher):
    """Writes `oracle/{client,server}_{G,G_rel,D_cos,bias,spread}` and `oracle/client_G_max`; G = bias + spread.
    With `cut`, `oracle/cut_*` too.

    The oracle is the gradient of the mean cross-entropy over all clients' rows where the round starts, whatever loss a
    method trains with. Costs a forward and a backward pass over these rows in each measured round, and with `frozen`
    one more over the participants' rows; `individual`, these for every client with a start of its own.

    Args:
        every: measure in every so many rounds, 0 for never.
        capture: `frozen` compares each participant's gradient on all its rows where the round starts; `live` what
            training met, the mean over a client's batches, wherever the halves then were and however scaled.
        scope: one oracle for all, at the merged state (`global`), or for each client at the state that it starts from
            (`individual`): its half with its own server copy, or with the server half as the round found it. The same
            where all start alike; where they do not, without the distance between their starts.
        batches: with `live`, the first so many steps of each half; null for all.
        max_rows: so many rows for the oracle, drawn once; null for all.
        cut: compare at the cut layer too: the mean over rows of their losses' gradients there. With `live`, of the
            messages as the server's backward left them, times what the loss was divided by, so that the methods' own
            scales are out; methods without such messages have none.
        bn_mode: batch normalisation uses its running statistics, or those of each 512 rows.
    """

    def __init__(
        self,
        every: int = 10,
        capture: Capture = "frozen",
        scope: Scope = "global",
        batches: int | None = None,
        max_rows: int | None = None,
        bn_mode: BnMode = "running",
        cut: bool = False,
    ) -> None:
        super().__init__(every)
        for key, word, known in (("capture", capture, get_args(Capture)), ("scope", scope, get_args(Scope))):
            require(word in known, f"oracle_distance.{key}", word, f"one of {', '.join(known)}")
        for key, value in {"batches": batches, "max_rows": max_rows}.items():
            require(value is None or value >= 1, f"oracle_distance.{key}", value, "an integer >= 1, or null")
        fits = batches is None or capture == "live"
        require(fits, "oracle_distance.batches", batches, "null where capture is frozen")
        self.capture: Capture = capture
        self.scope: Scope = scope
        self.batches, self.max_rows = batches, max_rows
        self.bn_mode: BnMode = bn_mode
        self.blocks = ("client", "server", "cut") if cut else ("client", "server")
        self._forget()
        if every and capture == "live":  # attached only when wanted: nobody else should pay for events of every step
            self.on_client_backward = self._on_client_backward
            self.on_server_backward = self._on_server_backward
            if cut:
                self.on_cut_gradient = self._on_cut_gradient

    def _forget(self) -> None:
        self.visits = Visits()
        self.oracle: dict[str, Tensor] = {}
        self.own: dict[str, dict[str, Tensor]] = {block: {} for block in self.blocks}
        self.halves: tuple[nn.Module, nn.Module] | None = None
        self.rows = np.zeros(0, np.int64)
        self.gradients: dict[str, dict[str, tuple[Tensor, float]]] = {block: {} for block in self.blocks}
        self.running: dict[str, dict[str, Running]] = {block: {} for block in self.blocks}
        self.grams: dict[str, tuple[Tensor, float | None]] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """The oracle, and with `frozen` the participants' gradients, at the state the round starts from."""
        self._forget()
        if not self.due(event.round):
            return
        halves = (event.client_half, event.server_half)
        everyone = np.sort(np.concatenate(module.population.rows))
        drawn = stream(module.seed, "oracle").permutation(len(everyone))[: self.max_rows]
        self.rows = everyone[np.sort(drawn)]
        self.oracle = self._at(module, halves, self.rows)
        if self.scope == "individual":
            self.halves = (copy.deepcopy(halves[0]), copy.deepcopy(halves[1]))
        for client in dict.fromkeys(event.participants) if self.halves is None and self.capture == "frozen" else ():
            self._keep_own(module, halves, client, str(client))

    def _at(self, module: Any, halves: Sequence[nn.Module], rows: np.ndarray) -> dict[str, Tensor]:
        """Gradients of both halves on these rows, and at the cut between them where that is asked for."""
        stages = list(halves)
        with untouched(halves, self.bn_mode, module.population.x.device):
            if "cut" in self.blocks:
                with untouched(halves, "running", module.population.x.device), torch.no_grad():
                    stages.insert(1, CutShift(halves[0](module.population.take(rows[:1])[0])))
            owned = [trained_parameters(stage) for stage in (*halves, *stages[1:-1])]
            over = [parameter for own in owned for parameter in own]
            found = mean_gradient(module.loss, stages, module.population, rows, over, ROWS_AT_ONCE)
        pieces = iter(found)
        return {block: row_of(list(islice(pieces, len(own)))) for block, own in zip(self.blocks, owned, strict=True)}

    def _keep_own(self, module: Any, halves: Sequence[nn.Module], client: int, key: str) -> None:
        """The gradient on all rows of a client."""
        own = module.population.rows[client]
        for block, gradient in self._at(module, halves, own).items() if len(own) else ():
            self.gradients[block][key] = (gradient, len(own))

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """A visit begins, and with `individual` its oracle is that of where it begins."""
        key = self.visits.start(event.slot, event.client_id)
        if self.halves is None:
            return
        halves = (event.client_half, event.server_half or self.halves[1])
        apart = any(state_apart(*pair) for pair in zip(halves, self.halves, strict=True))
        oracle = self._at(module, halves, self.rows) if apart else self.oracle
        served = key if self.capture == "frozen" else str(event.slot)  # live, server gradients are those of a copy
        for block in self.blocks:
            if block != "server":
                self.own[block][key] = oracle[block]
        if self.capture == "frozen" or event.server_half is not None:
            self.own["server"][served] = oracle["server"]
        if self.capture == "frozen":
            self._keep_own(module, halves, event.client_id, key)

    @torch.no_grad()
    def _on_client_backward(self, module: Any, event: ClientBackward) -> None:
        """What each client is about to step with."""
        for turn in event.turns if self.oracle else ():
            self._add("client", self.visits.of(turn.slot, turn.client_id), standing(turn.client_half), turn.rows)

    @torch.no_grad()
    def _on_server_backward(self, module: Any, event: ServerBackward) -> None:
        """What a server half is about to step with."""
        if self.oracle:
            self._add("server", str(event.branch), standing(event.server_half), event.rows)

    @torch.no_grad()
    def _on_cut_gradient(self, module: Any, event: CutGradient) -> None:
        """What came back through the cut."""
        if self.oracle and event.logits_gradient is not None and (found := sent_along(event)) is not None:
            self._add("cut", self.visits.of(event.slot, event.client_id), lambda: found, event.rows)

    def _add(self, block: str, key: str, gradient: Callable[[], Tensor], rows: int) -> None:
        running = self.running[block].setdefault(key, Running())
        if self.batches is None or running.steps < self.batches:
            running.add(gradient(), rows)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Reduce the gradients to inner products."""
        for half, found in self.running.items():
            self.gradients[half].update({key: (one.mean, one.rows) for key, one in found.items()})
        for half, oracle in self.oracle.items():
            if self.gradients[half] and oracle.numel():
                self.grams[half] = self._products(half, oracle)
        self.oracle, self.halves = {}, None
        self.own = {block: {} for block in self.blocks}
        self.running = {block: {} for block in self.blocks}

    def _products(self, half: str, oracle: Tensor) -> tuple[Tensor, float | None]:
        """Inner products of the differences and the oracle; where there are several, the mean of their squares too."""
        gradients = [gradient for gradient, _ in self.gradients[half].values()]
        oracles = [self.own[half].get(key, oracle) for key in self.gradients[half]]
        if all(each is oracle for each in oracles):
            return gram(differences_from(gradients, oracle)), None
        rows, square = differences_from_own(gradients, oracles, self._weights(half))
        return gram(rows), square

    def _weights(self, half: str) -> Tensor:
        rows = [rows for _, rows in self.gradients[half].values()]
        return weights_of("samples", rows, rows)

    def report(self, module: Any, report: RoundReport) -> None:
        """The scalars of both halves, and each client's distance."""
        for half, (products, square) in self.grams.items():
            found = oracle_distance(products.cpu(), self._weights(half), square)
            for name in ("G", "G_rel", "D_cos", "bias", "spread"):
                report.scalar(f"oracle/{half}_{name}", getattr(found, name))
            if half == "client":
                values = found.per_client.tolist()
                report.scalar("oracle/client_G_max", max(values))
                report.clients("oracle_G", dict(zip(self.gradients[half], values, strict=True)))
                report.vector("oracle/client_G", values)
        self._forget()


def state_apart(one: nn.Module, other: nn.Module) -> bool:
    """Whether two copies of a half are in different states, buffers included."""
    return any(not torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))


def standing(half: nn.Module) -> Callable[[], Tensor]:
    """Reads the gradient that stands in a half, one row."""
    parameters = trained_parameters(half)
    return lambda: row_of([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
