"""Update counts: how many steps each side took, on how many rows, and how far the server went per step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.rows import square
from lightning_sfl.callbacks.trail import Trail, trail_of, update_of
from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, RoundEnd, RoundStart, ServerStep
from lightning_sfl.measures.counts import magnitude_per_step, path_per_step
from lightning_sfl.measures.gram import quotient
from lightning_sfl.records.report import RoundReport

CUMULATIVE = ("client_steps", "server_steps", "samples_main", "samples_replay", "samples_server", "samples_synthetic")


class UpdateCounts(Watcher):
    """Writes `count/*`, exact integers of the round and, as `count/*_total`, of the run; and `server/*_per_step`.

    Args:
        every: report in every so many rounds, 0 for never; the totals count all rounds all the same.
        server_path: measure the length of every single server step too, which reads the server half three times a step.
    """

    def __init__(self, every: int = 1, server_path: bool = False) -> None:
        super().__init__(every)
        self.server_path = server_path
        self.totals: Counter[str] = Counter()
        self._forget()

    def _forget(self) -> None:
        self.counts: Counter[str] = Counter()
        self.visits = Visits()
        self.fields: dict[str, Counter[str]] = {"B": Counter(), "R": Counter(), "steps": Counter()}
        self.ends: dict[str, ClientEnd] = {}
        self.branches: set[int] = set()
        self.shared: Trail | None = None
        self.move: Tensor | None = None
        self.trails: dict[int, Trail] = {}
        self.lengths: list[Tensor] = []

    def reads_tensors(self, round: int) -> bool:
        """It only counts, unless it follows the server's path."""
        return self.server_path and self.due(round)

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Count from zero."""
        self._forget()
        self.counts["participants"] = len(event.participants)
        if self.due(event.round):
            self.shared = trail_of(event, event.server_half)
            if self.server_path:
                self.trails[id(event.server_half)] = self.shared

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """A visit begins."""
        self.visits.start(event.slot, event.client_id)
        if self.server_path and event.server_half is not None and self.due(event.round):
            self.trails[id(event.server_half)] = trail_of(event, event.server_half)

    def on_client_step(self, module: Any, event: ClientStep) -> None:
        """One step of every client whose turn it was."""
        for turn in event.turns:
            key = self.visits.of(turn.slot, turn.client_id)
            self.fields["steps"][key] += 1
            self.fields["B"][key] += turn.rows
            if turn.replayed:
                self.fields["R"][key] += turn.replayed
        self.counts["client_steps"] += len(event.turns)
        self.counts["samples_main"] += sum(turn.rows for turn in event.turns)
        self.counts["samples_replay"] += sum(turn.replayed for turn in event.turns)

    def on_server_step(self, module: Any, event: ServerStep) -> None:
        """One step of one server copy."""
        self.counts["server_steps"] += 1
        self.counts["samples_server"] += event.rows
        self.counts["samples_synthetic"] += event.synthetic
        self.branches.add(event.branch)
        if self.trails:
            self._measure(event)

    @torch.no_grad()
    def _measure(self, event: ServerStep) -> None:
        trail = self.trails.get(id(event.server_half))
        if trail is not None and trail.now:
            self.lengths.append(trail.length(event))

    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """A client is done, or was dropped."""
        self.ends[self.visits.of(event.slot, event.client_id)] = event
        self.counts["finished"] += event.finished

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Add up."""
        self.totals.update({name: self.counts[name] for name in CUMULATIVE})
        if self.shared is not None:
            self.move = square(update_of(event, self.shared)).sqrt()
        self.trails.clear()
        self.shared = None

    def report(self, module: Any, report: RoundReport) -> None:
        """Counts of the round and of the run, and of each client."""
        if not self.due(report.round):
            return
        steps = self.counts["server_steps"]
        for name in ("participants", "finished", *CUMULATIVE):
            report.scalar(f"count/{name}", self.counts[name])
        for name in CUMULATIVE:
            report.scalar(f"count/{name}_total", self.totals[name])
        report.scalar("count/server_per_client", quotient(steps, self.counts["client_steps"]))
        report.scalar("count/server_samples_per_step", quotient(self.counts["samples_server"], steps))
        if self.move is not None:
            move, branches = float(self.move), len(self.branches)
            report.scalar("server/mag_per_step", magnitude_per_step(move, steps, branches))
            report.scalar("server/mag_per_step_sq", magnitude_per_step(move**2, steps, branches))
        if self.lengths:
            path = float(torch.stack(self.lengths).double().sum())
            report.scalar("server/path_per_step", path_per_step(path, steps))
        self._report_clients(report)

    def _report_clients(self, report: RoundReport) -> None:
        for key in dict.fromkeys([*self.fields["steps"], *self.ends]):
            for field, values in self.fields.items():
                report.client(key, field, values[key])
        total = sum(end.weight for end in self.ends.values() if end.finished)
        for key, end in self.ends.items():
            report.client(key, "finished", end.finished)
            report.client(key, "w", quotient(end.weight, total) if end.finished else 0.0)
        report.vector("count/steps", [float(steps) for steps in self.fields["steps"].values()])
        self.ends.clear()

    def state_dict(self) -> dict[str, Any]:
        """The totals so far."""
        return dict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.totals = Counter(state_dict)
