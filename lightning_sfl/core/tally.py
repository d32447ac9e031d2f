"""Training loss and accuracy of a round, summed on the device and read once."""

from __future__ import annotations

import torch
from torch import Tensor


class Tally:
    """Collects (mean loss, logits, labels) of the batches of one round."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.rows: list[int] = []
        self.labels = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """One batch: its mean loss, logits (..., classes) and labels (...)."""
        self.losses.append(loss.detach())
        self.hits.append((logits.detach().argmax(-1) == labels).sum())
        self.rows.append(len(labels))
        self.labels += labels.numel()

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy over all rows seen."""
        rows = torch.tensor(self.rows, dtype=torch.float64)
        losses = torch.stack(self.losses).to("cpu", torch.float64)
        hits = torch.stack(self.hits).sum().item()
        return float(losses @ rows / rows.sum()), hits / self.labels
