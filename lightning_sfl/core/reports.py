"""What a round has shown of its participants, for selections that learn from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """rows: trained on, repetitions counted; mean, root_mean_square: of their losses, each as it was met.

    late: the client was not done, and these are means over those that were.
    """

    rows: int
    mean: float
    root_mean_square: float
    late: bool = False


class LossLedger:
    """Adds up the losses of a round by client."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[int, float, float]] = {}

    def add(self, clients: Sequence[int], sizes: Sequence[int], losses: Tensor) -> None:
        """Losses of single rows: sizes[0] of client clients[0], then those of the next."""
        for client, own in zip(clients, losses.double().split(list(sizes)), strict=True):
            rows, first, second = self.sums.get(client, (0, 0.0, 0.0))
            self.sums[client] = (rows + len(own), first + float(own.sum()), second + float(own.square().sum()))

    def reports(self, clients: Sequence[int]) -> dict[int, Report]:
        """Of those of the clients whose losses were met."""
        found = {client: self.sums[client] for client in dict.fromkeys(clients) if client in self.sums}
        return {c: Report(rows, first / rows, math.sqrt(second / rows)) for c, (rows, first, second) in found.items()}


def mean_of(reports: Sequence[Report]) -> Report:
    """What a late client is told to have shown: what is usual among these, of which there must be one."""
    count = len(reports)
    rows = sum(report.rows for report in reports) // count
    mean = sum(report.mean for report in reports) / count
    return Report(rows, mean, sum(report.root_mean_square for report in reports) / count, late=True)
