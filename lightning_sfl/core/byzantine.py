"""Clients that send something else than they found: a wrapper around what arrives, for experiments with robustness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.randomness import stream

ATTACKS = ("noise", "one_sided", "sign_flip", "scale", "inner_product")


@dataclass(frozen=True)
class Byzantine:
    """Which clients lie, in every round, and how.

    Args:
        share: of the population, rounded down; who they are follows from the run's seed.
        attack: noise is uniform within +-size; one_sided sends size; sign_flip and scale send -size and size times the
            truth; inner_product sends -size times the mean of the honest.
        size: how large the lie is.
    """

    share: float = 0.2
    attack: Literal["noise", "one_sided", "sign_flip", "scale", "inner_product"] = "sign_flip"
    size: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, "byzantine.share", self.share, "a share from 0 to below 1")
        require(self.attack in ATTACKS, "byzantine.attack", self.attack, f"one of {', '.join(ATTACKS)}")
        require(0 < self.size < float("inf"), "byzantine.size", self.size, "a finite number > 0")

    def liars(self, seed: int, num_clients: int) -> frozenset[int]:
        """Clients that lie in a run with this seed."""
        order = stream(seed, "byzantine").permutation(num_clients)
        return frozenset(order[: int(self.share * num_clients + 1e-9)].tolist())

    def corrupt(self, sent: Tensor, lying: Sequence[bool], seed: int, round: int) -> Tensor:
        """What arrives in place of `sent` (clients, numbers), where lying[i] says whether client i lies."""
        guilty = torch.tensor(lying, device=sent.device)
        if not guilty.any():
            return sent
        lies = {
            "noise": lambda: self._noise(sent, seed, round),
            "one_sided": lambda: torch.full_like(sent, self.size),
            "sign_flip": lambda: -self.size * sent,
            "scale": lambda: self.size * sent,
            "inner_product": lambda: (-self.size * (sent if guilty.all() else sent[~guilty]).mean(0)).expand_as(sent),
        }[self.attack]()
        return torch.where(guilty[:, None], lies, sent)

    def _noise(self, sent: Tensor, seed: int, round: int) -> Tensor:
        drawn = stream(seed, "attack", round).uniform(-self.size, self.size, tuple(sent.shape))
        return torch.from_numpy(drawn).to(sent)
