"""A network whose gradients at the cut are known: h = 0 at the client, logits = h + bias at the server."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tests.tiny import Rows, stretches


class Bias(nn.Module):
    """Adds one learnt number per class."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.bias


def toy() -> nn.Sequential:
    """Cut it behind `lower`."""
    lower = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(lower.weight)
    return nn.Sequential(OrderedDict(lower=lower, upper=Bias()))


def labelled(*labels: list[int]) -> Rows:
    """One client per list, whose rows have these labels and inputs of ones."""
    y = torch.tensor([label for client in labels for label in client])
    return Rows(torch.ones(len(y), 2), y, stretches([len(client) for client in labels]), num_classes=2)
