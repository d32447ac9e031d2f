"""Cut scale: by what each client's gradient at the cut is scaled, against the mean over its own batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.visits import Visits
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientBackward, ClientStart, CutGradient, RoundEnd, RoundStart
from lightning_sfl.measures.cut_scale import cut_scales, residuals, row_norms, scale_ratio, source_norms
from lightning_sfl.measures.gram import quotient
from lightning_sfl.records.report import RoundReport

PENDING_LIMIT = 1 << 20


class CutScale(Watcher):
    """Writes `cut/*`, means over the clients of each client's mean over its steps, and `cut/scale_ratio`.

    A step only keeps what crossed; it is worked through together at the end of the round, or when much has come.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 5) -> None:
        super().__init__(every)
        self._forget()

    def attends(self, round: int) -> bool:
        """Only rounds that are measured."""
        return self.due(round)

    def _forget(self) -> None:
        self.visits = Visits()
        self.keys: list[str] = []
        self.pending: list[CutGradient] = []
        self.steps: list[int] = []
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
        if self.due(event.round) and event.logits is not None and event.logits_gradient is not None:
            self.keys.append(self.visits.of(event.slot, event.client_id))
            self.pending.append(event)
            self.pending_size += event.logits.numel() + sum(part.numel() for part in event.raw)

    def on_client_backward(self, module: Any, event: ClientBackward) -> None:
        """All gradients of a step have been sent: only among them can rows have changed places."""
        self.steps.append(len(self.pending))
        if self.pending_size > PENDING_LIMIT:
            self._work_through()

    @torch.no_grad()
    def _work_through(self) -> None:
        steps = [self.pending[a:b] for a, b in pairwise([0, *self.steps, len(self.pending)]) if a < b]
        self.sums += _sums_by_form(steps)
        self.pending, self.steps, self.pending_size = [], [], 0

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Work through what is left and take the means over each client's steps."""
        if not self.keys:
            return
        self._work_through()
        raw, changed, *predicted = torch.cat(self.sums).cpu().split([3, 2, 1, 1, 1], dim=1)
        scales = cut_scales(raw, changed, *[column[:, 0] for column in predicted])
        self.found = {field: _means(self.keys, values.tolist()) for field, values in vars(scales).items()}
        self.sums = []

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


def _form(event: CutGradient) -> tuple[torch.Size, ...]:
    """What must agree for two messages to be joined."""
    return (event.logits.shape[1:], event.labels.shape[1:], *(part.shape[1:] for part in event.raw))


def _sums_by_form(steps: Sequence[Sequence[CutGradient]]) -> list[Tensor]:
    """Sums of all messages in their order, computed together where they are alike: all, those of a step, or none."""
    forms = [{_form(event) for event in step} for step in steps]
    if len(set().union(*forms)) == 1:
        return [_sums(steps)]
    parts = ([step] if len(form) == 1 else [[event] for event in step] for step, form in zip(steps, forms, strict=True))
    return [_sums([part]) for groups in parts for part in groups]


def _sums(steps: Sequence[Sequence[CutGradient]]) -> Tensor:
    """Per message: norms, squares, rows; squares of what was sent and of its sources; residuals, gradients, own
    predictions.
    """
    events = [event for step in steps for event in step]
    lengths = torch.tensor([event.raw[0].shape[0] for event in events])
    logits, gradients, labels = (
        torch.cat([getattr(event, name) for event in events]) for name in ("logits", "logits_gradient", "labels")
    )
    errors, slopes, counted = (column.view(len(logits), -1).sum(1) for column in residuals(logits, gradients, labels))
    raw = _part_norms([event.raw for event in events])
    whole = raw[0] if len(raw) == 1 else row_norms([part[:, None] for part in raw])
    squares = whole.square()
    unchanged = all(event.sent is event.raw for event in events)
    sent, source = (squares, squares) if unchanged else _changed(steps, raw)
    columns = torch.stack([whole, squares, torch.ones_like(whole), sent, source, errors, slopes, counted], dim=1)
    groups = torch.arange(len(events)).repeat_interleave(lengths).to(columns.device)
    total = columns.new_zeros(len(events), columns.shape[1]).index_add_(0, groups, columns)
    total[:, -1] *= total.new_tensor([event.rows / event.logits.shape[0] for event in events])
    return total


def _changed(steps: Sequence[Sequence[CutGradient]], raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Squared norms of the rows that were sent, and of the rows that they were before, wherever these stood."""
    sent = _part_norms([event.sent for step in steps for event in step])
    lengths = torch.tensor([sum(event.raw[0].shape[0] for event in step) for step in steps])
    places = torch.arange(len(steps)).repeat_interleave(lengths).to(sent[0].device)
    tolerance = max(1e-5, 2 * torch.finfo(steps[0][0].sent[0].dtype).eps)
    sources = [source_norms(old, new, places, tolerance) for old, new in zip(raw, sent, strict=True)]
    return _sum_of_squares(sent), _sum_of_squares(sources)


def _sum_of_squares(parts: Sequence[Tensor]) -> Tensor:
    """Over the parts of a cut, row by row."""
    return torch.stack([part.square() for part in parts]).sum(0)


def _part_norms(messages: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Norms of the rows of several messages of one form, in float64, part by part."""
    return [row_norms([torch.cat(column)]).double() for column in zip(*messages, strict=True)]


def _means(keys: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean of each key's values that are defined; NaN where none is."""
    known: dict[str, list[float]] = {key: [] for key in keys}
    for key, value in zip(keys, values, strict=True):
        if value == value:
            known[key].append(value)
    return {key: quotient(sum(found), len(found)) for key, found in known.items()}
