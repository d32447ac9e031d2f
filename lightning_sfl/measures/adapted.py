"""A network after a few steps on the rows of one client: what it is worth to that client."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from lightning_sfl.core.gradients import Loss, mean_gradient, trained_parameters, untouched
from lightning_sfl.core.population import Population


@torch.no_grad()
def adapted(loss: Loss, halves: Sequence[nn.Module], one: Population, steps: int, lr: float) -> list[nn.Module]:
    """Copies of the halves after so many plain gradient steps, each on all rows of a population of one client.

    loss: mean over all labels, of (logits (rows, ..., classes), labels (rows, ...)). Gradients are those of evaluation
    mode: dropout off, batch normalisation on its running statistics, which stay. The halves given are not changed.
    """
    copies = [copy.deepcopy(half) for half in halves]
    over = [parameter for half in copies for parameter in trained_parameters(half)]
    with untouched(copies, "running", one.y.device):
        for _ in range(steps):
            for parameter, gradient in zip(over, mean_gradient(loss, copies, one, one.rows[0], over), strict=True):
                parameter.sub_(gradient, alpha=lr)
    return copies
