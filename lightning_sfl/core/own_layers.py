"""Batch-norm layers that every client keeps for itself, from one round it takes part in to the next.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, Algorithm 1: all layers are merged but for batch normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sfl.core.state import State, load_state, state_of


def norm_state(module: nn.Module) -> State:
    """Live parameters and statistics of the batch-norm layers of a module, by name."""
    layers = {name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: tensor for name, tensor in state_of(module).items() if name.rpartition(".")[0] in layers}


class OwnLayers:
    """What each client seen so far has kept: memory grows with these clients, not with the population."""

    def __init__(self) -> None:
        self.kept: dict[int, list[State]] = {}

    def keep(self, client: int, halves: Sequence[nn.Module]) -> None:
        """Copy the batch-norm layers that a client ends with."""
        self.kept[client] = [{name: t.detach().clone() for name, t in norm_state(half).items()} for half in halves]

    def give_back(self, client: int, halves: Sequence[nn.Module]) -> None:
        """Write a client's own layers into the halves it starts from; a new client starts from these as they are."""
        for half, own in zip(halves, self.kept.get(client, ()), strict=False):
            load_state(half, own)

    def load(self, kept: dict[int, list[State]], device: torch.device) -> None:
        """Take up what an earlier run had kept."""
        self.kept = {c: [{name: t.to(device) for name, t in own.items()} for own in k] for c, k in kept.items()}
