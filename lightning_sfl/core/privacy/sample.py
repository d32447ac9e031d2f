"""Differential privacy of single rows in local training: DP-SGD.

M. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1.

    g <- (1/B) (sum_j g_j min(1, S / |g_j|) + N(0, (z S)^2))   for the B rows of a step
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.account import Account, check_installed
from lightning_sfl.core.privacy.base import check_clip, clipped, gaussian
from lightning_sfl.core.randomness import stream

Row = tuple[list[Tensor], list[Tensor] | None]


@dataclass(frozen=True)
class SampleDP:
    """Bounded gradients of single rows, and noise on their sum.

    Args:
        clip: largest norm S of the gradient of one row.
        noise_multiplier: z; the noise on the mean over the B rows of a step has std z S / B.
        delta: the account says epsilon at this delta; null for no account.
    """

    clip: float
    noise_multiplier: float
    delta: float | None = 1e-5

    def checked(self) -> SampleDP:
        """Refuse what cannot be."""
        check_clip(self.clip, self.noise_multiplier, "sample_dp")
        known = self.delta is None or 0 < self.delta < 1
        require(known, "sample_dp.delta", self.delta, "a number between 0 and 1, or null")
        return self

    @property
    def accountable(self) -> bool:
        """Whether an epsilon is asked for, and there is one."""
        return self.delta is not None and self.noise_multiplier > 0

    def descend(
        self,
        rows: Iterable[Row],
        parameters: list[nn.Parameter],
        factor: float,
        count: int,
        key: tuple[int, str, int, int, int],
    ) -> None:
        """Put the noised mean gradient of these rows into `.grad`.

        rows: of each, roots of the graph and the gradients with which to begin (None for a loss); factor: by which
        a row's gradient is multiplied to be that of its own loss; key: of the stream of the noise.
        """
        total = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        for roots, gradients in rows:
            found = torch.autograd.grad(roots, parameters, gradients, retain_graph=True, allow_unused=True)
            columns = zip(parameters, found, strict=True)
            own = torch.cat([(torch.zeros_like(p) if g is None else g).flatten().to(total) for p, g in columns])
            total += clipped(own * factor, self.clip)
        std = self.noise_multiplier * self.clip if self.noise_multiplier else 0.0
        mean = gaussian(total, std, stream(*key)) / count
        for parameter, piece in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter, copy=True)


class SampleAccounts:
    """An account for each client whose rows were trained on."""

    def __init__(self) -> None:
        self.of: dict[int, Account] = {}

    def add(self, client: int, noise_multiplier: float, rate: float) -> None:
        """One more step of this client."""
        self.of.setdefault(client, Account()).add(noise_multiplier, rate)

    def worst(self, delta: float) -> float:
        """The largest epsilon of all clients."""
        return max((account.spent(delta) for account in self.of.values()), default=0.0)

    def state(self) -> dict[int, list[list[float]]]:
        """For a checkpoint."""
        return {client: account.state() for client, account in self.of.items()}

    def load(self, state: Mapping[int, list[list[float]]]) -> None:
        """Take up what `state` gave."""
        self.of = {}
        for client, rounds in state.items():
            self.of[client] = Account()
            self.of[client].load(rounds)


def check_account(dp: SampleDP) -> None:
    """Refuse to begin without what computes the account."""
    if dp.accountable:
        check_installed("sample_dp")
