"""Client metrics: how good each client's own model is before the merge, and the merged one on each client's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn

from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientEnd, ClientStart, RoundEnd, RoundStart
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream
from lightning_sfl.measures.adapted import adapted
from lightning_sfl.measures.judged import Judgement, judged, spread
from lightning_sfl.records.report import RoundReport

METRICS = {"loss": True, "acc": False}  # whether large is bad


class ClientMetrics(Watcher):
    """Writes `client/{local,merged,adapted}_{train,val}_{loss,acc}_{mean,worst,std}`, and each client's.

    `local` is a client's half, with the server half that serves it, at the end of its round before anything is merged;
    `merged` is the merged network, in IFCA and CFL that of a client's cluster, on the rows of every client, and
    `adapted` the same after `adapt_steps` steps on the client's own training rows. Means are weighted by rows. `train`
    are the rows a client trains on, `val` those that it keeps (`data.client_val_fraction`). Besides,
    `client/duration_s_*`, the simulated time of `model.cell`, and
    `client/staleness_*`, merges that were missed, of those who took part, and who they are. Costs a forward pass over
    these rows for each participant, and one over the rows of all clients; adapting costs more of these.

    Args:
        every: measure in every so many rounds, 0 for never.
        train_rows: judge on the rows that clients train on, too; false where only those that they keep matter.
        max_rows: at most so many rows of each kind of a client, the same in every round; null for all.
        curves: clients, from number 0 on, whose values are scalars as well, as `client_3/merged_val_acc`, and so curves
            in TensorBoard and other loggers; so are `client_3/selected`, 0 or 1 in each round, and, in rounds in which
            it took part, its `duration_s` and `staleness` (of its first visit, where there are several).
        adapt_steps: plain gradient steps, each on all training rows of the client, at most `max_rows`, by which a copy
            of the merged network is adapted to it, as networks of Per-FedAvg and Reptile are to be used; 0 for none.
        adapt_lr: their rate; it has to be given where there are such steps.
    """

    def __init__(
        self,
        every: int = 1,
        train_rows: bool = True,
        max_rows: int | None = None,
        curves: int = 0,
        adapt_steps: int = 0,
        adapt_lr: float | None = None,
    ) -> None:
        super().__init__(every)
        require(max_rows is None or max_rows >= 1, "client_metrics.max_rows", max_rows, "an integer >= 1, or null")
        require(curves >= 0, "client_metrics.curves", curves, "an integer >= 0")
        require(adapt_steps >= 0, "client_metrics.adapt_steps", adapt_steps, "an integer >= 0")
        allowed = "a finite number > 0 where adapt_steps is above 0, else null"
        fits = 0 < adapt_lr < float("inf") and adapt_steps > 0 if adapt_lr is not None else adapt_steps == 0
        require(fits, "client_metrics.adapt_lr", adapt_lr, allowed)
        self.train_rows, self.max_rows, self.curves = train_rows, max_rows, curves
        self.adapt_steps, self.adapt_lr = adapt_steps, adapt_lr or 0.0
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.took_part: set[int] = set()
        self.local: dict[str, dict[str, Judgement]] = {}
        self.merged: dict[int, dict[str, Judgement]] = {}
        self.adapted: dict[int, dict[str, Judgement]] = {}
        self.seconds: dict[str, float] = {}
        self.missed: dict[str, int] = {}

    def check(self, data: Any) -> None:
        """There must be rows to judge on."""
        if self.every and not self.train_rows:
            kept = getattr(data, "client_val_fraction", 0.0)
            require(kept > 0, "client_metrics.train_rows", False, "true where data.client_val_fraction is 0")

    def rows_of(self, module: Any, client: int) -> Iterator[tuple[str, Population]]:
        """The kinds of rows that this client has, as of a population of one, and at least one of each."""
        own, seed = module.population, module.seed
        kinds = {"train": own.rows, "val": own.kept}
        for kind, rows in kinds.items():
            if rows and len(rows[client]):
                order = stream(seed, f"client_metrics_{kind}", client=client).permutation(len(rows[client]))
                yield kind, Population(own.x, own.y, (rows[client][np.sort(order[: self.max_rows])],))

    def _judge(self, module: Any, client: int, *halves: nn.Module) -> dict[str, Judgement]:
        kinds = {kind: one for kind, one in self.rows_of(module, client) if self.train_rows or kind != "train"}
        return {kind: judged(module.loss, halves, one) for kind, one in kinds.items()}

    def _adapt(self, module: Any, client: int, *halves: nn.Module) -> Sequence[nn.Module]:
        own = dict(self.rows_of(module, client)).get("train")  # who has none stays with what was merged
        return halves if own is None else adapted(module.loss, halves, own, self.adapt_steps, self.adapt_lr)

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """A new round."""
        self._forget()

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """A visit begins."""
        self.visits.start(event.slot, event.client_id)

    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Judge what a client hands in."""
        if not self.due(event.round) or not module.chooses:
            return
        key = self.visits.of(event.slot, event.client_id)
        self.took_part.add(event.client_id)
        self.missed[key] = event.missed
        if module.timed:
            self.seconds[key] = module.took_s(event.client_id, event.steps, event.rows, event.finished)
        if event.finished:
            server_half = module.server_half if event.server_half is None else event.server_half
            self.local[key] = self._judge(module, event.client_id, event.client_half, server_half)

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Judge the merged network, on everybody's rows."""
        if self.due(event.round):
            for client in range(module.population.num_clients):
                halves = module.serving(client)
                self.merged[client] = self._judge(module, client, *halves)
                if self.adapt_steps:
                    self.adapted[client] = self._judge(module, client, *self._adapt(module, client, *halves))

    def report(self, module: Any, report: RoundReport) -> None:
        """Every client's values, and how they are spread."""
        if not self.merged:
            return
        self._report_clients(report)
        self._report_spread(report, "local", [*self.local.values()])
        self._report_spread(report, "merged", [*self.merged.values()])
        self._report_spread(report, "adapted", [*self.adapted.values()])
        for name, values in (("duration_s", self.seconds), ("staleness", self.missed)):
            if values:
                report.scalar(f"client/{name}_mean", fmean(values.values()))
                report.scalar(f"client/{name}_max", float(max(values.values())))
        report.vector("client/selected", [float(client) for client in sorted(self.took_part)])
        self._forget()

    def _report_clients(self, report: RoundReport) -> None:
        for key, missed in self.missed.items():
            self._tell(report, key, "staleness", missed)
        for key, seconds in self.seconds.items():
            self._tell(report, key, "duration_s", seconds)
        for key, found in self.local.items():
            for field, value in named("local", found).items():
                self._tell(report, key, field, value)
        for client, found in self.merged.items():
            report.person(client, "selected", client in self.took_part)
            self._curve(report, str(client), "selected", int(client in self.took_part))
            for field, value in {**named("merged", found), **named("adapted", self.adapted.get(client, {}))}.items():
                report.person(client, field, value)
                self._curve(report, str(client), field, value)

    def _tell(self, report: RoundReport, key: str, field: str, value: float) -> None:
        report.client(key, field, value)
        self._curve(report, key, field, value)

    def _curve(self, report: RoundReport, key: str, field: str, value: float) -> None:
        if key.isdecimal() and int(key) < self.curves:
            report.scalar(f"client_{key}/{field}", value)

    def _report_spread(self, report: RoundReport, which: str, found: Sequence[dict[str, Judgement]]) -> None:
        for kind in ("train", "val"):
            of_kind = [each[kind] for each in found if kind in each]
            for name, large_is_bad in METRICS.items() if of_kind else ():
                values = [getattr(each, name) for each in of_kind]
                tag = f"client/{which}_{kind}_{name}"
                for part, value in vars(spread(values, [each.rows for each in of_kind], large_is_bad)).items():
                    report.scalar(f"{tag}_{part}", value)
                report.vector(tag, values)


def named(which: str, found: dict[str, Judgement]) -> dict[str, float]:
    """Values by name, e.g. `local_val_acc`."""
    return {f"{which}_{kind}_{name}": getattr(each, name) for kind, each in found.items() for name in METRICS}
