"""Noise on smashed data, before they leave the client.

Independent N(0, std^2) on every number. The server learns from the noised data; the client backpropagates the gradient
that the server found at them. It is no differential privacy: smashed data have no bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.base import gaussian
from lightning_sfl.core.randomness import stream


class SmashedNoise:
    """Noises each upload with draws of its own; of one client and step in one slot, the uploads in their order."""

    def __init__(self, std: float, seed: int) -> None:
        require(0 <= std < math.inf, "smashed_noise", std, "a finite number >= 0")
        self.std, self.seed, self.round = std, seed, 0
        self.met: Counter[tuple[int, int, int]] = Counter()

    def start_round(self, index: int) -> None:
        """Count uploads anew."""
        self.round = index
        self.met.clear()

    def __call__(self, slot: int, client: int, step: int, received: Sequence[Tensor]) -> list[Tensor]:
        """These parts of smashed data, noised; whole numbers stay as they are."""
        if self.std == 0:
            return [*received]
        key = (slot, client, step)
        draws = stream(self.seed, f"smashed_noise|{slot}|{self.met[key]}", self.round, client, step)
        self.met[key] += 1
        return [gaussian(part, self.std, draws) if part.is_floating_point() else part for part in received]
