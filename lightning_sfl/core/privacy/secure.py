"""Secure aggregation: the server learns the weighted mean of the updates, and no single one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.base import Moment, Privacy, Setting
from lightning_sfl.core.privacy.masked_sum import MaskedSum
from lightning_sfl.core.privacy.secrets import KEY_BYTES, SHARE_BYTES

MODULUS = 2**32
ENTRY_BYTES = 4


class SecureAggregation(Privacy):
    """Updates are quantised, masked and added up mod 2^32; masks cancel, those of drop-outs are taken out again.

    A client sends omega x and omega, where omega = min(1, weight / max_weight), or 1 where all count alike; every x is
    cut to [-value_range, value_range], and omega x rounded up or down at random to one of `levels` levels. So the sum
    of m clients is at most m 2 value_range / levels off in every number. Masking is simulated, see `masked_sum`. Below
    the threshold nothing is merged: all updates of the round count as 0.

    Args:
        value_range: largest size of a number of an update; larger ones are cut.
        levels: of quantisation; times participants at most 2^32, so that no sum overflows.
        max_weight: weight (rows of a client) that counts fully.
        threshold: clients that must be left to unmask the sum; null for two thirds of the participants, rounded up.
        drop_out: chance that a client agrees on masks and is then gone.
    """

    forms_mean = True
    together = True

    def __init__(
        self,
        value_range: float = 8.0,
        levels: int = 2**22,
        max_weight: float = 1000.0,
        threshold: int | None = None,
        drop_out: float = 0.0,
    ) -> None:
        for key, value in {"value_range": value_range, "max_weight": max_weight}.items():
            require(0 < value < math.inf, f"privacy.{key}", value, "a finite number > 0")
        require(2 <= levels <= MODULUS // 2, "privacy.levels", levels, "an integer from 2 to 2**31")
        require(threshold is None or threshold >= 2, "privacy.threshold", threshold, "an integer >= 2, or null")
        require(0 <= drop_out < 1, "privacy.drop_out", drop_out, "a share from 0 to below 1")
        self.value_range, self.levels, self.max_weight = value_range, levels, max_weight
        self.threshold, self.drop_out = threshold, drop_out
        self.aborted, self.told = 0, {"dropped": 0.0, "cut_values": 0.0}

    def prepare(self, setting: Setting) -> None:
        """Begin anew; see that sums fit, and that there is somebody to hide among."""
        super().prepare(setting)
        self.aborted = 0
        most, name = setting.participants, type(self).__name__
        require(most >= 2, "privacy", name, "with 2 participants or more: the sum of one is its update")
        fits = most * self.levels <= MODULUS
        require(
            fits, "privacy.levels", self.levels, f"at most {MODULUS // most} with {most} participants: sums overflow"
        )
        few = self.threshold is None or self.threshold <= most
        require(few, "privacy.threshold", self.threshold, f"at most {most}, the participants")

    def least(self, count: int) -> int:
        """Clients of so many that must be left."""
        return max(2, math.ceil(2 * count / 3)) if self.threshold is None else self.threshold

    def stays(self, client: int, moment: Moment) -> bool:
        """Whether the client is still there when vectors are sent."""
        return self.drop_out == 0 or bool(moment.draws("secure_drop_out", client).random() >= self.drop_out)

    def hide(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        return update

    # --- the sum ----------------------------------------------------------------------------------------------------

    def average(
        self, updates: Sequence[Tensor], weights: Sequence[float], clients: Sequence[int], moments: Sequence[Moment]
    ) -> Tensor:
        count, nothing = len(updates), torch.zeros_like(updates[0])
        here = [i for i in range(count) if self.stays(clients[i], moments[i])]
        self.told = {"dropped": float(count - len(here)), "cut_values": 0.0}
        if len(here) < self.least(count):
            self.aborted += 1
            return nothing
        draws = [moment.draws("secure_keys", client) for client, moment in zip(clients, moments, strict=True)]
        session = MaskedSum(draws, self.least(count), len(nothing) + 1)
        received = {}
        for i in here:
            vector = self.quantised(updates[i], weights[i], moments[i].draws("secure_rounding", clients[i]))
            received[i] = session.masked(i, vector)
        total = session.unmasked(received).astype(np.float64)
        step = 2 * self.value_range / self.levels
        mean = (total[:-1] * step - len(here) * self.value_range) / (total[-1] / self.levels)
        return torch.from_numpy(mean).to(nothing)

    def quantised(self, update: Tensor, weight: float, draws: np.random.Generator) -> np.ndarray:
        """omega x and omega as levels, (numbers + 1,) uint32."""
        bound = self.value_range
        values = update.detach().double().cpu().numpy()
        self.told["cut_values"] += float((np.abs(values) > bound).sum())
        omega = 1.0 if self.setting.uniform else min(1.0, weight / self.max_weight)
        shares = (omega * np.clip(values, -bound, bound) + bound) / (2 * bound)
        scaled = np.append(shares, omega) * self.levels
        rounded = np.floor(scaled + draws.random(len(scaled)))
        return np.minimum(rounded, self.levels - 1).astype(np.uint32)

    # --- what is told -----------------------------------------------------------------------------------------------

    def upload_bytes(self, numbers: int, number_bytes: int, place: int, clients: Sequence[int], moment: Moment) -> int:
        return ENTRY_BYTES * (numbers + 1) if self.stays(clients[place], moment) else 0

    def round_bytes(self, place: int, clients: Sequence[int], moment: Moment) -> tuple[int, int]:
        """Its key and two shares for each other client; the same of those; then a share of each client's secrets."""
        count = len(clients)
        left = sum(self.stays(client, moment) for client in clients)
        helps = self.stays(clients[place], moment) and left >= self.least(count)
        shares = 2 * (count - 1) * SHARE_BYTES
        return KEY_BYTES + shares + helps * count * SHARE_BYTES, (count - 1) * KEY_BYTES + shares

    def scalars(self) -> dict[str, float]:
        told = {f"privacy/{name}": value for name, value in self.told.items()}
        return {**told, "privacy/aborted_total": float(self.aborted)}

    def said(self) -> str:
        gone = f", {self.drop_out:g} of the clients drop out" if self.drop_out else ""
        kind = "simulated; the mean itself is not noised"
        return f"SecureAggregation: {self.levels} levels in +-{self.value_range:g}{gone}; {kind}"

    def state(self) -> dict[str, Any]:
        return {"aborted": self.aborted}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self.aborted = state["aborted"]
