"""Cut scale: by what each client's gradient at the cut is scaled, against the mean over its own batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.starts import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientStart, CutGradient, RoundEnd, RoundStart
from lightning_sfl.measures.cut_scale import cut_scales, residuals, row_norms, scale_ratio
from lightning_sfl.measures.gram import quotient
from lightning_sfl.records.report import RoundReport

PENDING_LIMIT = 1 << 18


class CutScale(Watcher):
    """Writes `cut/*`, means over the clients of each client's mean over its steps, and `cut/scale_ratio`.

    A step only takes norms and keeps logits, which are small; they are worked through together at the end of the
    round, or when many have come.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._forget()

    def _forget(self) -> None:
        self.visits = Visits()
        self.keys: list[str] = []
        self.raw: list[Tensor] = []
        self.sent: list[Tensor] = []
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

    @torch.no_grad()
    def on_cut_gradient(self, module: Any, event: CutGradient) -> None:
        """Norms now; the logits are kept for later."""
        if not self.due(event.round) or event.logits is None or event.logits_gradient is None:
            return
        self.keys.append(self.visits.of(event.slot, event.client_id))
        self.raw.append(row_norms(event.raw))
        unchanged = all(sent is raw for sent, raw in zip(event.sent, event.raw, strict=True))
        self.sent.append(self.raw[-1] if unchanged else row_norms(event.sent))
        self.own_share.append(event.rows / len(event.logits))
        self.pending.append(event)
        self.pending_size += event.logits.numel()
        if self.pending_size > PENDING_LIMIT:
            self._work_through()

    def _work_through(self) -> None:
        groups: dict[tuple[object, ...], list[CutGradient]] = {}
        for event in self.pending:
            groups.setdefault((event.logits.shape[1:], event.labels.shape[1:]), []).append(event)
        if len(groups) > 1:  # several kinds of labels cannot be joined
            groups = {(number,): [event] for number, event in enumerate(self.pending)}
        for events in groups.values():
            logits = torch.cat([event.logits.detach() for event in events])
            gradients = torch.cat([event.logits_gradient for event in events])
            columns = torch.stack(residuals(logits, gradients, torch.cat([event.labels for event in events])), dim=1)
            per_row = max(1, len(columns) // max(1, len(logits)))
            self.sums.append(_sums(columns, [len(event.logits) * per_row for event in events]))
        self.pending, self.pending_size = [], 0

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Work through what is left and take the means over each client's steps."""
        if not self.keys:
            return
        self._work_through()
        raw, sent = torch.cat(self.raw).double(), torch.cat(self.sent).double()
        ones = torch.ones_like(raw)
        rows = [len(norms) for norms in self.raw]
        of_raw = _sums(torch.stack([raw, raw.square(), ones], dim=1), rows).cpu()
        of_sent = _sums(sent.square()[:, None], [len(norms) for norms in self.sent])[:, 0].cpu()
        errors, gradients, predictions = torch.cat(self.sums).cpu().unbind(dim=1)
        scales = cut_scales(of_raw, of_sent, errors, gradients, predictions * torch.tensor(self.own_share).double())
        self.found = {field: _means(self.keys, values.tolist()) for field, values in vars(scales).items()}
        self.raw, self.sent, self.sums = [], [], []

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
