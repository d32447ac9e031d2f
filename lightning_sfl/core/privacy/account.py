"""The privacy account: what the rounds so far have spent, by Renyi differential privacy of the sampled Gaussian.

I. Mironov, K. Talwar, L. Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019, as Opacus
computes it: an account is no place for code of one's own.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from typing import Any

from lightning_sfl.core.errors import ConfigError

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 128, 256, 512)


def check_installed(key: str = "privacy") -> None:
    """Refuse to begin without the package that computes the account of this setting."""
    if importlib.util.find_spec("opacus") is None:
        raise ConfigError(
            f"{key}.delta is not allowed: null where Opacus is missing; pip install 'lightning_sfl[privacy]' brings it"
        )


class Account:
    """Rounds of one noise multiplier and sampling rate each; `spent` is the epsilon of all of them together."""

    def __init__(self) -> None:
        self.rounds: list[list[float]] = []
        self.curves: dict[tuple[float, float], Any] = {}

    def add(self, noise_multiplier: float, rate: float) -> None:
        """One more round."""
        if self.rounds and self.rounds[-1][1:] == [noise_multiplier, rate]:
            self.rounds[-1][0] += 1
        else:
            self.rounds.append([1, noise_multiplier, rate])

    def spent(self, delta: float) -> float:
        """Epsilon at this delta; infinite where a round had no noise."""
        from opacus.accountants.analysis import rdp

        if any(noise == 0 for _, noise, _ in self.rounds):
            return math.inf
        total: Any = sum(count * self.curve(rdp, noise, rate) for count, noise, rate in self.rounds)
        with warnings.catch_warnings():  # it warns where the best order is the first or the last: still a bound
            warnings.simplefilter("ignore", UserWarning)
            epsilon, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
        return float(epsilon)

    def curve(self, rdp: Any, noise_multiplier: float, rate: float) -> Any:
        """What one round spends at each order."""
        key = (noise_multiplier, rate)
        if key not in self.curves:
            self.curves[key] = rdp.compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
        return self.curves[key]

    def state(self) -> list[list[float]]:
        """For a checkpoint."""
        return self.rounds

    def load(self, rounds: Sequence[Sequence[float]]) -> None:
        """Take up what `state` gave."""
        self.rounds = [[*each] for each in rounds]
