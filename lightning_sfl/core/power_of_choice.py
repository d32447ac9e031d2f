"""Power of choice: of some drawn candidates, those with the largest losses take part.

Y. J. Cho, J. Wang, G. Joshi, "Towards Understanding Biased Client Selection in Federated Learning", AISTATS 2022: its
rpow-d, which goes by the losses that clients had when they last took part, and so asks nobody for anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.memory import Memory
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.reports import Report
from lightning_sfl.core.selection import Selector


class PowerOfChoice(Selector, Memory):
    """Draws candidates, all equally likely, and takes those whose mean loss was largest when they last took part.

    Who has not taken part yet comes first. Of candidates that are alike, those drawn first are taken.

    Args:
        candidates: how many are drawn; null for twice `participants`. With as many as `participants` it is Uniform.
    """

    depends_on_past = True
    learns = True
    losses: Tensor

    def __init__(self, candidates: int | None = None) -> None:
        super().__init__(losses=torch.zeros(0, dtype=torch.float64))
        require(candidates is None or candidates >= 1, "selection.candidates", candidates, "an integer >= 1, or null")
        self.candidates = candidates

    def prepare(self, population: Population, num_classes: int, participants: int, step_rows: int | None) -> None:
        enough = self.candidates is None or self.candidates >= participants
        allowed = f"an integer >= participants={participants}, or null"
        require(enough, "selection.candidates", self.candidates, allowed)
        self.losses = self.losses.new_full((population.num_clients,), torch.inf)

    def learn(self, round: int, reports: Mapping[int, Report]) -> None:
        for client, report in reports.items():
            self.losses[client] = report.mean

    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        count = min(self.candidates or 2 * participants, len(available))
        drawn = stream(seed, "participants", round).choice(available, size=count, replace=False)
        order = np.argsort(-self.losses.cpu().numpy()[drawn], kind="stable")
        return [int(client) for client in drawn[np.sort(order[:participants])]]
