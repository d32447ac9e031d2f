"""What each branch has learnt from lately: the fading mean of the label distributions it met (MultiSFL)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def label_distribution(labels: np.ndarray, num_classes: int, normalised: bool = True) -> np.ndarray:
    """Shares of the classes among these labels, (classes,) float64; their counts, if not normalised."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    return counts / counts.sum() if normalised else counts


class ScoreVectors:
    """Score vector sv_b = sum_j decay^(r-j) L_j / sum_j decay^(r-j) of each branch b, over its visits j = 1..r.

    sums: the numerators, (branches, classes); masses: the denominators, (branches,), zero for a branch that has met
    nothing, which counts as balanced.
    """

    def __init__(self, sums: np.ndarray, masses: np.ndarray) -> None:
        self.sums, self.masses = sums, masses

    @property
    def num_classes(self) -> int:
        return int(self.sums.shape[1])

    def observe(self, branch: int, distribution: np.ndarray, decay: float) -> None:
        """The branch meets labels of this distribution (classes,)."""
        self.sums[branch] = decay * self.sums[branch] + distribution
        self.masses[branch] = decay * self.masses[branch] + 1

    def all(self) -> np.ndarray:
        """Score vectors of all branches, (branches, classes)."""
        met = self.masses[:, None] > 0
        return np.where(met, self.sums / np.where(met, self.masses[:, None], 1), 1 / self.num_classes)

    def deficit(self, branch: int) -> np.ndarray:
        """By how much the branch has met each class less than the branches have on average, (classes,), at least 0."""
        scores = self.all()
        found: np.ndarray = np.maximum(0, scores.mean(axis=0) - scores[branch])
        return found

    def state(self) -> dict[str, Tensor]:
        """Sums and masses, for a checkpoint."""
        return {"sums": torch.from_numpy(self.sums.copy()), "masses": torch.from_numpy(self.masses.copy())}

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> ScoreVectors:
        """What `state` gave."""
        return cls(state["sums"].cpu().numpy().copy(), state["masses"].cpu().numpy().copy())
