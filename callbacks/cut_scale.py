"""Cut scale: by what each client's gradient at the cut is scaled, against the mean over its own batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientStart, CutGradient, RoundEnd, RoundStart
from lightning_sfl.measures.cut_scale import cut_scales, residuals, row_norms, scale_ratio
from lightning_sfl.measures.gram import quotient
from lightning_sfl.records.report import RoundReport

PENDING_LIMIT = 1 << 18


class CutScale(Watcher):
    """Writes `cut/*`, means over the clients of each client's mean over its steps, and `cut/scale_ratio`.

    A step only keeps what crossed; it is worked through together at the end of the round, or when much has come.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.keys: list[str] = []
        self.norms: list[Tensor] = []
        self.own_share: list[float] = []
        self.pending: list[CutGradient] = []
        self.pending_size = 0
        self.sums: list[Tensor] = []
        self.found: dict[str, dict[str, float]] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Forget the round before."""
        self._forget()

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """A visit begins."""
        self.visits.start(event.slot, event.client_id)

    def on_cut_gradient(self, module: Any, event: CutGradient) -> None:
        """Only kept, until there are enough to be worked through together."""
        if not self.due(event.round) or event.logits is None or event.logits_gradient is None:
            return
        self.keys.append(self.visits.of(event.slot, event.client_id))
        self.own_share.append(event.rows / len(event.logits))
        self.pending.append(event)
        self.pending_size += event.logits.numel() + sum(part.numel() for part in event.raw)
        if self.pending_size > PENDING_LIMIT:
            self._work_through()

    @torch.no_grad()
    def _work_through(self) -> None:
        forms = {(event.logits.shape[1:], event.labels.shape[1:], _forms(event.raw)) for event in self.pending}
        groups = [self.pending] if len(forms) == 1 else [[event] for event in self.pending]  # unlike ones do not join
        for events in groups:
            logits = torch.cat([event.logits.detach() for event in events])
            gradients = torch.cat([event.logits_gradient for event in events])
            columns = torch.stack(residuals(logits, gradients, torch.cat([event.labels for event in events])), dim=1)
            per_row = max(1, len(columns) // max(1, len(logits)))
            self.sums.append(_sums(columns, [len(event.logits) * per_row for event in events]))
            rows = [len(event.raw[0]) for event in events]
            raw = _row_norms([event.raw for event in events])
            unchanged = all(sent is part for event in events for sent, part in zip(event.sent, event.raw, strict=True))
            sent = raw if unchanged else _row_norms([event.sent for event in events])
            self.norms.append(_sums(torch.stack([raw, raw.square(), torch.ones_like(raw), sent.square()], dim=1), rows))
        self.pending, self.pending_size = [], 0

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Work through what is left and take the means over each client's steps."""
        if not self.keys:
            return
        self._work_through()
        norms = torch.cat(self.norms).cpu()
        errors, gradients, predictions = torch.cat(self.sums).cpu().unbind(dim=1)
        own = predictions * torch.tensor(self.own_share).double()
        scales = cut_scales(norms[:, :3], norms[:, 3], errors, gradients, own)
        self.found = {field: _means(self.keys, values.tolist()) for field, values in vars(scales).items()}
        self.norms, self.sums = [], []

    def report(self, module: Any, report: RoundReport) -> None:
        """Means over the clients, and each client's scale."""
        for field, values in self.found.items():
            known = [value for value in values.values() if value == value]
            report.scalar(f"cut/{field}_mean", quotient(sum(known), len(known)))
        if self.found:
            scales = self.found["scale_rel"]
            if len(scales) > 1:
                report.scalar("cut/scale_ratio", scale_ratio(list(scales.values())))
            report.vector("cut/scale_rel", list(scales.values()))
            for field in ("norm", "denom", "scale_rel"):
                report.clients(f"cut_{field}", self.found[field])
        self.found = {}


def _forms(parts: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(part.shape[1:] for part in parts)


def _row_norms(messages: Sequence[Sequence[Tensor]]) -> Tensor:
    """Norms of the rows of several messages of one form, in float64."""
    return row_norms([torch.cat(column) for column in zip(*messages, strict=True)]).double()


def _sums(columns: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums over consecutive groups of rows, (groups, columns)."""
    total = columns.new_zeros(len(lengths), columns.shape[1])
    groups = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(columns.device)
    return total.index_add_(0, groups, columns)


def _means(keys: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean of each key's values that are defined; NaN where none is."""
    known: dict[str, list[float]] = {key: [] for key in keys}
    for key, value in zip(keys, values, strict=True):
        if value == value:
            known[key].append(value)
    return {key: quotient(sum(found), len(found)) for key, found in known.items()}
