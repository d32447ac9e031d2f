"""Local differential privacy: every client bounds its update and adds noise before it leaves.

J. Duchi, M. Jordan, M. Wainwright, "Local Privacy and Statistical Minimax Rates", FOCS 2013, for the model; the noise
is the Gaussian mechanism of C. Dwork, A. Roth, "The Algorithmic Foundations of Differential Privacy" (2014), appendix
A.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.privacy.base import Moment, Privacy, check_clip, clipped, gaussian


class LocalDP(Privacy):
    """Update D becomes D min(1, clip / |D|) plus N(0, std^2) on every number.

    Args:
        clip: largest norm of an update.
        noise_multiplier: std = noise_multiplier * clip.
        epsilon: instead: std = 2 clip sqrt(2 ln(1.25 / delta)) / epsilon, which makes one update (epsilon, delta)
            differentially private; a client spends as much in every round it takes part in. At most 1, where the
            formula holds.
        delta: of that formula.
    """

    def __init__(
        self, clip: float, noise_multiplier: float | None = None, epsilon: float | None = None, delta: float = 1e-5
    ) -> None:
        if (noise_multiplier is None) == (epsilon is None):
            raise ConfigError("privacy=LocalDP is not allowed: give either noise_multiplier or epsilon")
        small = epsilon is None or 0 < epsilon <= 1
        require(small, "privacy.epsilon", epsilon, "a number > 0 and at most 1, where the formula holds")
        require(0 < delta < 1, "privacy.delta", delta, "a number between 0 and 1")
        check_clip(clip, noise_multiplier if noise_multiplier is not None else 1.0)
        self.clip, self.epsilon, self.delta = clip, epsilon, delta
        self.std = noise_multiplier * clip if noise_multiplier else 0.0
        if epsilon is not None:
            self.std = 2 * clip * math.sqrt(2 * math.log(1.25 / delta)) / epsilon

    def hide(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        return gaussian(clipped(update, self.clip), self.std, moment.draws("local_dp", client))

    def said(self) -> str:
        noise = f"noise of std {self.std:.4g} on each number of each client's update, clipped to {self.clip:g}"
        spent = "" if self.epsilon is None else f"; epsilon {self.epsilon:g} at delta {self.delta:g} for each update"
        return f"LocalDP: {noise}{spent}"
