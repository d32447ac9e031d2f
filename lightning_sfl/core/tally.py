"""Training loss and accuracy of a round, summed on the device and read once."""

from __future__ import annotations

import torch
from torch import Tensor

PENDING_LIMIT = 1 << 16


class Tally:
    """Collects (mean loss, logits, labels) of the batches of one round; hits are counted for many batches at once."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.rows: list[int] = []
        self.labels = 0
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.pending_size = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """One batch: its mean loss, logits (..., classes) and labels (...), none of which may change afterwards."""
        self.losses.append(loss.detach())
        self.rows.append(len(labels))
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

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy over all rows seen."""
        self._count()
        rows = torch.tensor(self.rows, dtype=torch.float64)
        losses = torch.stack(self.losses).to("cpu", torch.float64)
        hits = torch.stack(self.hits).sum().item()
        return float(losses @ rows / rows.sum()), hits / self.labels
