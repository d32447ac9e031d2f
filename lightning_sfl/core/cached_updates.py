"""The latest update of every client, and their mean over all clients, whoever has handed one in.

Y. Wang, Y. Cao, J. Wu, R. Chen, J. Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with
Cached Update Calibration", ICLR 2024: h_k and h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_sfl.core.state import State


class CachedUpdates:
    """h_k, 0 of clients that were never seen, and h, the sum of p_k h_k: memory grows with the clients seen.

    Args:
        shares: p_k of every client that may hand in, of sum 1.
    """

    def __init__(self, shares: Mapping[int, float]) -> None:
        self.shares = dict(shares)
        self.mean: State = {}  # empty as long as it is 0
        self.kept: dict[int, State] = {}

    @torch.no_grad()
    def take(self, updates: Mapping[int, State]) -> None:
        """h <- h + sum of p_k (D_k - h_k) over these clients, in their order, and h_k <- D_k."""
        for client, update in updates.items():
            old = self.kept.get(client)
            for name, tensor in update.items():
                change = self.shares[client] * (tensor if old is None else tensor - old[name])
                self.mean[name] = self.mean[name] + change if name in self.mean else change
            self.kept[client] = update

    @torch.no_grad()
    def beyond(self, client: int) -> State:
        """h - h_k: what all clients have moved by beyond this one; empty as long as h is 0."""
        own = self.kept.get(client)
        return {name: h if own is None else h - own[name] for name, h in self.mean.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"mean": self.mean, "kept": self.kept}
