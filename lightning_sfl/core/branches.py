"""Persistent branches of one network: the soft pull of each towards their mean, the master (MultiSFL)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lightning_sfl.core.state import State, state_of


@torch.no_grad()
def pull_towards(branch: nn.Module, master: State, strength: float) -> None:
    """branch <- (branch + strength * master) / (1 + strength), in place; integer tensors stay.

    The mean of all branches stays, and the distances between them shrink by 1 / (1 + strength).
    """
    for name, tensor in state_of(branch).items():
        if tensor.is_floating_point():
            tensor.lerp_(master[name], strength / (1 + strength))


def pull_all(branches: Iterable[nn.Module], master: nn.Module, strength: float) -> None:
    """Pull every branch towards the master."""
    for branch in branches:
        pull_towards(branch, state_of(master), strength)
