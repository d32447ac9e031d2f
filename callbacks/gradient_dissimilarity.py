"""Gradient dissimilarity: how far what the server learnt from last lies from the data at large, the V value of GAS."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_sfl.callbacks.probe_rows import ProbeSource, check_source, probe_of
from lightning_sfl.callbacks.rows import Room, copy_into
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import RoundEnd, RoundStart, ServerBackward
from lightning_sfl.core.gradients import mean_gradient, trained_parameters, untouched
from lightning_sfl.core.population import Population
from lightning_sfl.measures.dissimilarity import gradient_dissimilarity
from lightning_sfl.records.report import RoundReport


class GradientDissimilarity(Watcher):
    """Writes `dissimilarity/V` and `dissimilarity/PV`, P being the number of parameter tensors (GAS, AAAI 2025).

    The squared distance between the server half's gradient in the last step of the round and its mean gradient on some
    batches of the probe, at the same server weights and the merged client half. Not written where a method has several
    server halves, or none. Costs those batches, and a copy of the server half and its gradient at every server step.

    Args:
        every: measure in every so many rounds, 0 for never.
        source: probe with held-out rows, or with the test set, as the reference does.
        batches: how many batches of the probe, drawn once.
        batch_size: rows of each; all of the probe's rows where it has fewer.
    """

    def __init__(self, every: int = 10, source: ProbeSource = "val", batches: int = 10, batch_size: int = 50) -> None:
        super().__init__(every)
        for key, value in {"batches": batches, "batch_size": batch_size}.items():
            require(value >= 1, f"gradient_dissimilarity.{key}", value, "an integer >= 1")
        self.source: ProbeSource = source
        self.batches, self.batch_size = batches, batch_size
        self.rows: Population
        self._forget()
        if every:  # attached only when wanted: nobody else should pay for events of every step
            self.on_server_backward = self._on_server_backward

    def _forget(self) -> None:
        self.server_half: nn.Module | None = None
        self.rooms: tuple[Room, Room] | None = None
        self.found: tuple[float, float] | None = None

    def check(self, data: Any) -> None:
        """There must be rows to probe with."""
        if self.every:
            check_source(data, self.source, "gradient_dissimilarity")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: draw the probe, before any training."""
        if self.every and not self.idle:
            self.rows = probe_of(pl_module, self.source, self.batches * self.batch_size)

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Note the one server half there is, if there is one."""
        self._forget()
        self.server_half = event.server_half if self.due(event.round) else None

    @torch.no_grad()
    def _on_server_backward(self, module: Any, event: ServerBackward) -> None:
        """Keep weights and gradient: this step may be the last."""
        if event.server_half is not self.server_half:
            return
        parameters = trained_parameters(event.server_half)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if self.rooms is None:
            self.rooms = (Room(parameters), Room(gradients))
        copy_into(self.rooms, [parameters, gradients])

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """The probe's gradients at the weights of the last step."""
        if self.rooms is None:
            return
        before, gradient = self.rooms
        halves = (event.client_half, copy.deepcopy(event.server_half))
        owned = trained_parameters(halves[1])
        with torch.no_grad():
            torch._foreach_copy_(owned, before.tensors)
        with untouched(halves, "running", self.rows.x.device):
            (rows,) = self.rows.rows
            batches = np.array_split(rows, max(1, min(self.batches, len(rows) // self.batch_size)))
            probes = [mean_gradient(module.loss, halves, self.rows, batch, owned, len(batch)) for batch in batches]
        self.found = gradient_dissimilarity(gradient.tensors, probes)
        self.rooms = None

    def report(self, module: Any, report: RoundReport) -> None:
        """V and P V."""
        if self.found is not None:
            report.scalar("dissimilarity/V", self.found[0])
            report.scalar("dissimilarity/PV", self.found[1])
        self._forget()
