"""Label imbalance: how unevenly the classes are represented in what the server half learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import RoundEnd, RoundStart, ServerStep
from lightning_sfl.core.server_groups import Labels
from lightning_sfl.measures.gram import quotient
from lightning_sfl.measures.label_imbalance import imbalance, label_counts
from lightning_sfl.records.report import RoundReport

PENDING_LIMIT = 1 << 14  # rows


class LabelImbalance(Watcher):
    """Writes `labels/imbalance`, the mean over a round's server steps, and `labels/imbalance_round`, of all their rows.

    KL(p || uniform) / log C of the labels a step learns from, replayed, generated and mixed rows included: 0 where all
    C classes are alike, 1 where there is one. Steps of all copies of the server half count alike, as do rows.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 5) -> None:
        super().__init__(every)
        self._forget()

    def attends(self, round: int) -> bool:
        """Only rounds that are measured."""
        return self.due(round)

    def reads_tensors(self, round: int) -> bool:
        """Labels are in the events of the server; no half has to be brought."""
        return False

    def _forget(self) -> None:
        self.pending: list[Labels] = []
        self.pending_rows = 0
        self.counts: list[Tensor] = []

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Forget the round before."""
        self._forget()

    def on_server_step(self, module: Any, event: ServerStep) -> None:
        """Only kept, until there are enough to be counted together."""
        self.pending.append(event.labels)
        self.pending_rows += event.rows
        if self.pending_rows > PENDING_LIMIT:
            self._count(module.data.num_classes)

    def _count(self, num_classes: int) -> None:
        self.counts.append(label_counts(self.pending, num_classes))
        self.pending, self.pending_rows = [], 0

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Count what is left."""
        if self.pending:
            self._count(module.data.num_classes)

    def report(self, module: Any, report: RoundReport) -> None:
        """Both figures; nothing where no server half took a step."""
        if self.counts:
            counts = torch.cat(self.counts).cpu()
            steps = imbalance(counts)
            known = steps[steps.isfinite()]
            report.scalar("labels/imbalance", quotient(float(known.sum()), len(known)))
            report.scalar("labels/imbalance_round", float(imbalance(counts.sum(dim=0))))
        self._forget()
