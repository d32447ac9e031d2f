"""Careful plain-PyTorch loops, one client after another: the measure the platform's loop is held against.

Tensors stay in memory, a client's rows of the round are gathered in one stroke, modules and their copies are reused,
nothing is deep-copied in a round, no DataLoader is made. They do the same forward, backward and optimizer steps on the
same batches as the platform does, and nothing else: no loss is read, no accuracy counted, no gradient checked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import Batch, Plan


@torch.no_grad()
def load(target: nn.Module, source: Sequence[Tensor]) -> None:
    """Write weights into a module."""
    torch._foreach_copy_(list(target.parameters()), list(source))


@torch.no_grad()
def averaged(states: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> list[Tensor]:
    """Weighted mean of the clients' weights."""
    total = sum(weights)
    means = []
    for column in zip(*states, strict=True):
        mean = torch.zeros_like(column[0])
        for tensor, weight in zip(column, weights, strict=True):
            mean.add_(tensor, alpha=weight / total)
        means.append(mean)
    return means


def epoch_of(population: Population, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of all of a client's batches."""
    x, y = population.take(np.concatenate([batch.rows for batch in batches]))
    sizes = [batch.num_rows for batch in batches]
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


class PlainFedAvg:
    """FedAvg, client after client, with a fresh SGD for each."""

    def __init__(self, model: nn.Module, population: Population, lr: float) -> None:
        self.model, self.local = model, copy.deepcopy(model)
        self.population, self.lr = population, lr

    def round(self, plan: Plan) -> None:
        """One round of local training and averaging."""
        start = [p.detach() for p in self.model.parameters()]
        states, weights = [], []
        for slot, client in enumerate(plan.participants):
            load(self.local, start)
            optimizer = torch.optim.SGD(self.local.parameters(), lr=self.lr)
            for x, y in epoch_of(self.population, plan.batches[slot]):
                loss = cross_entropy(self.local(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            states.append([p.detach().clone() for p in self.local.parameters()])
            weights.append(len(self.population.rows[client]))
        load(self.model, averaged(states, weights))

    def state(self) -> dict[str, Tensor]:
        """Weights by the backbone's names."""
        return self.model.state_dict()


class PlainSFL:
    """SplitFed V2 with interleaved clients: client forward, server step, client step, batch by batch."""

    def __init__(self, client_half: nn.Module, server_half: nn.Module, population: Population, lr: float) -> None:
        self.client_half, self.server_half = client_half, server_half
        self.locals: list[nn.Module] = []
        self.population, self.lr = population, lr

    def round(self, plan: Plan) -> None:
        """One round: sweeps over the clients' batches, then the average of the client halves."""
        while len(self.locals) < len(plan.participants):
            self.locals.append(copy.deepcopy(self.client_half))
        start = [p.detach() for p in self.client_half.parameters()]
        optimizers = []
        for local in self.locals[: len(plan.participants)]:
            load(local, start)
            optimizers.append(torch.optim.SGD(local.parameters(), lr=self.lr))
        server_optimizer = torch.optim.SGD(self.server_half.parameters(), lr=self.lr)
        epochs = [epoch_of(self.population, batches) for batches in plan.batches]
        for sweep in plan.interleaved():
            for batch in sweep:
                x, y = epochs[batch.slot][batch.local_step]
                smashed = self.locals[batch.slot](x)
                received = smashed.detach().requires_grad_()
                loss = cross_entropy(self.server_half(received), y)
                server_optimizer.zero_grad()
                loss.backward()
                server_optimizer.step()
                optimizers[batch.slot].zero_grad()
                smashed.backward(received.grad)
                optimizers[batch.slot].step()
        states = [[p.detach() for p in local.parameters()] for local in self.locals[: len(plan.participants)]]
        load(self.client_half, averaged(states, [len(self.population.rows[c]) for c in plan.participants]))

    def state(self) -> dict[str, Tensor]:
        """Weights by the backbone's names."""
        return {**self.client_half.state_dict(), **self.server_half.state_dict()}
