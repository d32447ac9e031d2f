"""The paper's figure 1: the loss along the line between two networks trained apart, that began alike or did not.

Two 2NNs train on 600 digits each that they do not share, 240 steps of 50 rows (20 passes) at rate 0.1, which is one
round of one client in the project's loop. Then the loss of theta w + (1 - theta) w' on all training digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from typing_extensions import override

from benchmarks.fedavg_tables.corpora import data_of
from benchmarks.fedavg_tables.store import Store, read_json, write_json
from benchmarks.fedavg_tables.training import quiet, quiet_trainer
from lightning_sfl.backbones import MLP
from lightning_sfl.core.population import as_input
from lightning_sfl.core.selection import Selector
from lightning_sfl.data import FederatedData
from lightning_sfl.methods import FedAvg

FILE = "init.json"
BATCH_SIZE, PASSES, RATE = 50, 20, 0.1
THETAS = tuple(round(-0.2 + 0.1 * step, 1) for step in range(15))
ROWS_AT_A_TIME = 10_000
State = dict[str, Tensor]


class Only(Selector):
    """One client, in every round."""

    def __init__(self, client: int) -> None:
        self.client = client

    @override
    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        return [self.client]


def trained(data: FederatedData, client: int, start_seed: int, seed: int) -> State:
    """Weights of a network that began at `start_seed` and trained on this client's rows alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(start_seed)
        network = MLP()
    work: dict[str, Any] = {"batch_size": BATCH_SIZE, "local_epochs": PASSES, "participants": 1, "seed": seed}
    method = FedAvg(network, "relu1", selection=Only(client), client_optimizer=partial(SGD, lr=RATE), **work)
    quiet_trainer(1, [], limit_val_batches=0).fit(method, data)
    return {**method.client_half.state_dict(), **method.server_half.state_dict()}


def between(one: State, other: State, theta: float) -> State:
    """theta of one and the rest of the other."""
    return {name: theta * one[name] + (1 - theta) * other[name] for name in one}


@torch.no_grad()
def loss_of(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy over all rows."""
    total = 0.0
    for start in range(0, len(x), ROWS_AT_A_TIME):
        logits = network(as_input(x[start : start + ROWS_AT_A_TIME]))
        total += float(cross_entropy(logits, y[start : start + ROWS_AT_A_TIME], reduction="sum"))
    return total / len(x)


def line(data: FederatedData, seed: int, alike: bool) -> list[float]:
    """Losses on all training rows at THETAS, between the networks of the first two clients."""
    starts = (seed, seed if alike else seed + 1000)
    first, second = (trained(data, client, start, seed) for client, start in zip((0, 1), starts, strict=True))
    network, losses = MLP(), []
    for theta in THETAS:
        network.load_state_dict(between(first, second, theta))
        losses.append(loss_of(network, data.population.x, data.population.y))
    return losses


def demonstrate(store: Store, seeds: Sequence[int], folder: Path, cache_dir: str | None) -> None:
    """Measure what is not on file yet, seed by seed."""
    quiet()
    path = store.folder / FILE
    known: dict[str, Any] = read_json(path) or {}
    for seed in seeds:
        if str(seed) not in known:
            data = data_of("2nn", "iid", seed, folder, cache_dir)
            known[str(seed)] = {way: line(data, seed, way == "alike") for way in ("alike", "apart")}
            write_json(path, known)
        shown = {way: losses[THETAS.index(0.5)] for way, losses in known[str(seed)].items()}
        print(f"init, seed {seed}: loss halfway {shown['alike']:.3f} begun alike, {shown['apart']:.3f} begun apart")
