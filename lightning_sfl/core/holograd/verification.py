"""Proof of gradient projection: a verifier computes some of the scalars again and compares, relative to their size.

An absolute tolerance would let a client pass that sends zeros, since honest scalars have a size of ||g|| / sqrt(D).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.randomness import stream

LEAST_PROBES = 16


@dataclass(frozen=True)
class Check:
    """Outcome for one upload: how many scalars were compared and refused, and the largest |a - a*| / s among them."""

    checked: int
    rejected: int
    largest: float


class Verifier:
    """Compares each scalar with this probability and refuses |a - a*| > tolerance * s, s the rms of its own scalars.

    Its draws come from a stream of its own: who is checked does not depend on what was sent.
    """

    def __init__(self, probability: float = 0.05, tolerance: float = 1e-4, seed: int = 0) -> None:
        require(0 <= probability <= 1, "probability", probability, "from 0 to 1")
        require(0 < tolerance < float("inf"), "tolerance", tolerance, "a finite number > 0")
        self.probability, self.tolerance, self.seed = probability, tolerance, seed

    def chosen(self, step: int, client: int, count: int) -> np.ndarray:
        """Which of `count` scalars of this client are compared in this step."""
        return np.flatnonzero(stream(self.seed, "verify", step, client).random(count) < self.probability)

    def probes(self, chosen: np.ndarray, count: int) -> np.ndarray:
        """What the verifier computes itself: the chosen ones, filled up to 16 if there are as many, for the scale."""
        others = np.setdiff1d(np.arange(count), chosen)
        return np.concatenate([chosen, others[: max(0, LEAST_PROBES - len(chosen))]])

    def compare(self, sent: Tensor, own: Tensor, checked: int) -> Check:
        """Scalars sent and computed on the probes; the first `checked` of them are compared. NaN fails."""
        scale = float(own.double().square().mean().sqrt())
        errors = (sent[:checked].double() - own[:checked].double()).abs()
        accepted = errors <= self.tolerance * scale
        relative = (errors / scale).nan_to_num(float("inf")) if scale > 0 else errors
        return Check(checked, checked - int(accepted.sum()), float(relative.max()) if checked else 0.0)


def detection_probability(probability: float, invalid: float) -> float:
    """Chance that at least one of so many invalid proofs is checked: 1 - (1 - p)^(q m)."""
    return 1 - (1 - probability) ** invalid


def least_stake(probability: float, invalid: float) -> float:
    """Stake, in rewards of one proof, from which cheating on so many proofs does not pay: (1 - P) / P * q m."""
    caught = detection_probability(probability, invalid)
    return (1 - caught) / caught * invalid
