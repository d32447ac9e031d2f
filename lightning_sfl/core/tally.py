"""Training loss and accuracy of a round, summed on the device and read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENDING_LIMIT = 1 << 16


class Seen(NamedTuple):
    """What one process has seen of a round: (place in it, mean loss, rows) of each batch, float64; hits, labels."""

    batches: Tensor
    hits: int
    labels: int


class Tally:
    """Collects (mean loss, logits, labels) of the batches of one round; hits are counted for many batches at once."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.rows: list[int] = []
        self.places: list[int] = []
        self.place = 0
        self.labels = 0
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.pending_size = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """One batch: its mean loss, logits (..., classes) and labels (...), none of which may change afterwards."""
        self.losses.append(loss.detach())
        self.rows.append(len(labels))
        self.places.append(self.place)
        self.place += 1
        self.pending.append((logits.detach(), labels))
        self.pending_size += logits.numel()
        if self.pending_size > PENDING_LIMIT:
            self._count()

    def _count(self) -> None:
        if self.pending:
            logits = torch.cat([logits.flatten(0, -2) for logits, _ in self.pending])
            labels = torch.cat([labels.flatten() for _, labels in self.pending])
            self.hits.append((logits.argmax(-1) == labels).sum())
            self.labels += len(labels)
            self.pending, self.pending_size = [], 0

    def skip(self) -> None:
        """A batch that another process sees."""
        self.place += 1

    def seen(self) -> Seen:
        """What this process has seen, on the host."""
        self._count()
        losses = torch.stack(self.losses).to("cpu", torch.float64) if self.losses else torch.zeros(0).double()
        columns = [torch.tensor(self.places).double(), losses, torch.tensor(self.rows).double()]
        hits = int(torch.stack(self.hits).sum().item()) if self.hits else 0
        return Seen(torch.stack(columns, dim=1), hits, self.labels)

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy over all rows seen."""
        return means([self.seen()])


def means(seen: Sequence[Seen]) -> tuple[float, float]:
    """Mean loss and accuracy over all rows that these processes have seen, in the order of the round; NaN if none."""
    batches, labels = torch.cat([each.batches for each in seen]), sum(each.labels for each in seen)
    _, losses, rows = batches[batches[:, 0].argsort(stable=True)].T.contiguous()
    if not labels:
        return math.nan, math.nan
    return float(losses @ rows / rows.sum()), sum(each.hits for each in seen) / labels
