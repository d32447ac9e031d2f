"""HoloGrad's core in a loop of Fabric's own, without the Trainer and without a method: `fabric_loop.py PROCESSES FILE`.

Each process has every so manieth client; what travels is their scalars.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.holograd.basis import Basis, BasisChoice
from lightning_sfl.core.holograd.commitment import base_of, basis_seeds, hash_batch
from lightning_sfl.core.holograd.coordinator import Coordinator, Recipe
from lightning_sfl.core.holograd.projection import flat, project_gradients, unflat
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.holograd.synthesis import synthesize
from lightning_sfl.core.rounds import Work, plan_round
from tests.tiny import network, rows, sgd

SIZES = (5, 4, 9, 2)
BASIS = BasisChoice("subspace", rank=8)
ROBUST = Robust("trimmed_mean", 0.25)
NUM_SCALARS, ROUNDS = 40, 4


def train(fabric: Fabric) -> dict[str, Tensor]:
    """The network after some rounds."""
    net, population = network(), rows(SIZES).population
    named = list(net.named_parameters())
    parameters = [parameter for _, parameter in named]
    optimizer = sgd(0.1, 0.9)(parameters)
    base = base_of(0, "holograd")
    recipe = Recipe(NUM_SCALARS, "random", "mmse", "shared", ROBUST, BASIS)
    basis = Basis(BASIS, basis_seeds(base, BASIS.rank), flat(parameters, parameters))
    coordinator = Coordinator(recipe, base, named, basis)
    clients = range(len(SIZES))
    for step in range(ROUNDS):
        plan = plan_round(0, step, clients, population.rows, Work(None, 1), "sorted")
        batches = [batches[0] for batches in plan.batches]
        coordinator.open(step, [hash_batch(np.concatenate([batch.rows for batch in batches]), 0)])
        gradients = torch.zeros(len(clients), len(basis.memory))
        for client in clients[fabric.global_rank :: fabric.world_size]:
            x, labels = population.take(batches[client].rows)
            gradients[client] = flat(torch.autograd.grad(cross_entropy(net(x), labels), parameters), parameters)
        sent = fabric.all_gather(project_gradients(gradients, coordinator.sets[0])).view(-1, len(clients), NUM_SCALARS)
        arrived = torch.stack([sent[client % fabric.world_size, client] for client in clients])
        message = coordinator.conclude(arrived, normalised([float(size) for size in SIZES]), clients)
        estimate = synthesize(message.coordinates, message.coefficients, coordinator.sets)
        for parameter, piece in zip(parameters, unflat(estimate, parameters), strict=True):
            parameter.grad = piece.clone()
        optimizer.step()
        basis.learn(estimate)
    return net.state_dict()


def main() -> None:
    processes, path = sys.argv[1:]
    fabric = Fabric(accelerator="cpu", devices=int(processes), strategy="ddp")
    fabric.launch()
    torch.set_num_threads(1)
    torch.save(train(fabric), f"{path}.{fabric.global_rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
