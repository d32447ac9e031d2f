"""Krum: only the updates that have the others near them are used.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, section 4, and Multi-Krum of its section 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sfl.core.aggregators.base import Reweighting
from lightning_sfl.core.errors import require


class Krum(Reweighting):
    """The plain mean of the `num_kept` states whose nearest neighbours are nearest, by the sum of squared distances.

    Of n states, n - num_byzantine - 2 neighbours count. All clients count alike, whatever `weighting` says: what a
    client says of its own size could be a lie too. Of states that are equally near, the one in the first slot is taken.

    Args:
        num_byzantine: so many clients of a round may send anything; 2 * num_byzantine + 3 must take part at least.
        num_kept: states whose mean is taken: 1 for Krum, more for Multi-Krum.
    """

    def __init__(self, num_byzantine: int = 1, num_kept: int = 1) -> None:
        require(num_byzantine >= 0, "aggregator.num_byzantine", num_byzantine, "an integer >= 0")
        require(num_kept >= 1, "aggregator.num_kept", num_kept, "an integer >= 1")
        self.num_byzantine, self.num_kept = num_byzantine, num_kept

    @property
    def least(self) -> int:
        return max(2 * self.num_byzantine + 3, self.num_kept + self.num_byzantine)

    def shares(self, products: Tensor, weights: Tensor) -> Tensor:
        kept = torch.argsort(self.scores(products), stable=True)[: self.num_kept]
        shares = torch.zeros_like(weights)
        shares[kept] = 1 / len(kept)
        return shares

    def scores(self, products: Tensor) -> Tensor:
        """Sum of each update's squared distances to its nearest neighbours."""
        own = products.diagonal()
        apart = (own[:, None] + own[None, :] - 2 * products).clamp(min=0)
        apart.fill_diagonal_(torch.inf)
        neighbours = len(own) - self.num_byzantine - 2
        return apart.sort(dim=1).values[:, :neighbours].sum(dim=1)
