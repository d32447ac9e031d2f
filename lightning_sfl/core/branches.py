"""Persistent branches of one network: their master, and the soft pull of each towards it (MultiSFL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_sfl.core.aggregation import weighted_average
from lightning_sfl.core.state import State, state_of


def master_of(branches: Sequence[nn.Module]) -> State:
    """The plain mean of the branches, whatever data they met; integer tensors take the maximum."""
    return weighted_average([state_of(branch) for branch in branches], [1.0] * len(branches))


@torch.no_grad()
def pull_towards(branch: nn.Module, master: State, strength: float) -> None:
    """branch <- (branch + strength * master) / (1 + strength), in place; integer tensors stay.

    The branches' mean stays, and all distances between them shrink by 1 / (1 + strength).
    """
    for name, tensor in state_of(branch).items():
        if tensor.is_floating_point():
            tensor.lerp_(master[name], strength / (1 + strength))
