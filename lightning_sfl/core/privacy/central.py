"""Central differential privacy at the level of clients: bounded updates, a uniform mean, and noise on the mean.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018;
the adaptive bound is that of G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially Private Learning with
Adaptive Clipping", NeurIPS 2021, algorithm 1.

    D_i <- D_i min(1, S / |D_i|)
    mean update <- (1/m) sum_i D_i + N(0, (z S / m)^2)
    adaptive:  b <- (number of i with |D_i| <= S + N(0, sigma_b^2)) / m;  S <- S exp(-rate (b - quantile))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.account import Account, check_installed
from lightning_sfl.core.privacy.base import Moment, Privacy, Setting, check_clip, clipped, gaussian

COUNT_NOISE_SHARE = 1 / 20


def noise_with_count(noise_multiplier: float, count_noise: float) -> float:
    """Noise multiplier of the mean, so that mean and noised count together are as private as `noise_multiplier` says.

    z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2), Andrew et al., theorem 1.
    """
    return float((noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5) if noise_multiplier else 0.0


class CentralDP(Privacy):
    """The server, which is trusted, noises the mean of the clipped updates; who gets the network learns little of one.

    Args:
        clip: largest norm S of an update; with `adaptive` the one to begin with (0.1 in its paper).
        noise_multiplier: z; the noise on the mean of m updates has std z S / m.
        delta: the account says epsilon at this delta; null for no account.
        adaptive: let S follow a quantile of the norms of the updates.
        quantile: share of the updates that are to be no longer than S.
        rate: how quickly S follows.
        count_noise: std sigma_b of the noise on the number of updates no longer than S; null for participants / 20,
            and for none where noise_multiplier is 0.
    """

    at_client = False
    forms_mean = True
    uniform = "a client of large weight would move the mean by more than its clipped share"

    def __init__(
        self,
        clip: float,
        noise_multiplier: float,
        delta: float | None = 1e-5,
        adaptive: bool = False,
        quantile: float = 0.5,
        rate: float = 0.2,
        count_noise: float | None = None,
    ) -> None:
        check_clip(clip, noise_multiplier)
        require(delta is None or 0 < delta < 1, "privacy.delta", delta, "a number between 0 and 1, or null")
        require(0 <= quantile <= 1, "privacy.quantile", quantile, "a share from 0 to 1")
        require(0 < rate < math.inf, "privacy.rate", rate, "a finite number > 0")
        some = count_noise is None or 0 <= count_noise < math.inf
        require(some, "privacy.count_noise", count_noise, "a finite number >= 0, or null")
        finite = not adaptive or clip < math.inf
        require(finite, "privacy.clip", clip, "a finite number with adaptive")
        self.first_clip = self.clip = clip
        self.noise_multiplier, self.delta = noise_multiplier, delta
        self.adaptive, self.quantile, self.rate, self.given_count_noise = adaptive, quantile, rate, count_noise
        self.account = Account()
        self.count_noise = count_noise or 0.0

    def prepare(self, setting: Setting) -> None:
        """Begin anew; see that the noise on the count leaves some for the mean, and that an account can be kept."""
        super().prepare(setting)
        self.clip, self.account = self.first_clip, Account()
        by_default = setting.participants * COUNT_NOISE_SHARE if self.noise_multiplier else 0.0
        self.count_noise = by_default if self.given_count_noise is None else self.given_count_noise
        if self.adaptive and self.noise_multiplier:
            twice, z = 2 * self.count_noise, self.noise_multiplier
            why = f"below 2 count_noise = {twice:g}, as the noised count would give away more than that"
            require(z < twice, "privacy.noise_multiplier", z, why)
        if self.accounted:
            check_installed()

    @property
    def accounted(self) -> bool:
        """Whether an epsilon is told."""
        return self.delta is not None and self.noise_multiplier > 0 and not self.setting.unaccounted

    @property
    def mean_multiplier(self) -> float:
        """Noise multiplier of the mean alone."""
        adaptive = noise_with_count(self.noise_multiplier, self.count_noise) if self.adaptive else 0.0
        return adaptive or self.noise_multiplier

    def hide(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        return update

    def average(
        self, updates: Sequence[Tensor], weights: Sequence[float], clients: Sequence[int], moments: Sequence[Moment]
    ) -> Tensor:
        count, clip, moment = len(updates), self.clip, moments[0]
        mean = torch.stack([clipped(update, clip) for update in updates]).sum(dim=0) / count
        std = self.mean_multiplier * clip / count if self.noise_multiplier else 0.0
        if self.adaptive:
            self.adapt([float(update.double().norm()) for update in updates], moment)
        self.account.add(self.noise_multiplier, self.setting.rate)
        return gaussian(mean, std, moment.draws("central_dp"))

    def adapt(self, norms: Sequence[float], moment: Moment) -> None:
        """The clip of the next round."""
        within = sum(norm <= self.clip for norm in norms)
        noise = moment.draws("clip_count").normal(0.0, self.count_noise) if self.count_noise else 0.0
        self.clip *= math.exp(-self.rate * ((within + noise) / len(norms) - self.quantile))

    def scalars(self) -> dict[str, float]:
        told = {"privacy/clip": self.clip} if self.adaptive else {}
        return {**told, "privacy/epsilon": self.account.spent(self.delta)} if self.accounted and self.delta else told

    def said(self) -> str:
        clip = f"clip {self.first_clip:g}{' at first' if self.adaptive else ''}"
        noise = f"{clip}, noise multiplier {self.noise_multiplier:g}"
        if self.accounted:
            return f"CentralDP: {noise}; clients asked at rate {self.setting.rate:.4g}; epsilon at delta {self.delta:g}"
        why = self.setting.unaccounted or ("no delta is given" if self.noise_multiplier else "there is no noise")
        return f"CentralDP: {noise}; no epsilon, as {why}"

    def state(self) -> dict[str, Any]:
        return {"clip": self.clip, "account": self.account.state()}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self.clip = state["clip"] if self.adaptive else self.first_clip
        self.account.load(state["account"])
