"""Cells of the 2NN in a loop of plain PyTorch that shares with the platform the pictures and how a curve is read off.

Dealing, draws, training, averaging and judging are its own. Where both loops need the same rounds, it is not the
platform that makes them fewer than the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.fedavg_tables.cells import IID, Cell, Run, participants_of
from benchmarks.fedavg_tables.corpora import CLIENTS, source_of
from benchmarks.fedavg_tables.paper import TABLES
from benchmarks.fedavg_tables.planning import search_of
from benchmarks.fedavg_tables.store import Store, read_json, write_json
from lightning_sfl.core.errors import require
from lightning_sfl.records.curves import Point, crossing

FILE = "plain.json"
NAMES = ("2nn-iid-C0.0-B10", "2nn-iid-C0.1-B10", "2nn-noniid-C0.1-B10")
SHARDS_EACH = 2
Rows = tuple[Tensor, Tensor]


def dealt(labels: Tensor, split: str, clients: int, draw: torch.Generator) -> list[Tensor]:
    """Rows of every client: shuffled, or two shards each of the rows sorted by label."""
    if split == IID:
        return list(torch.randperm(len(labels), generator=draw).chunk(clients))
    shards = labels.argsort(stable=True).chunk(SHARDS_EACH * clients)
    order = torch.randperm(len(shards), generator=draw)
    return [torch.cat([shards[place] for place in pair]) for pair in order.view(clients, SHARDS_EACH).tolist()]


def two_layers(features: int, classes: int) -> nn.Module:
    """Two hidden layers of 200 with ReLU, begun as PyTorch begins them."""
    layers = [nn.Linear(features, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def train_client(network: nn.Module, rows: Rows, batch_size: int, rate: float, draw: torch.Generator) -> None:
    """One epoch of SGD in shuffled batches."""
    x, y = rows
    for batch in torch.randperm(len(y), generator=draw).split(batch_size):
        network.zero_grad()
        cross_entropy(network(x[batch]), y[batch]).backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight.sub_(rate * weight.grad)  # type: ignore[operator]


def averaged(states: Sequence[dict[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """The mean weighted by rows."""
    shares = [size / sum(sizes) for size in sizes]
    return {
        name: torch.stack([share * state[name] for share, state in zip(shares, states, strict=True)]).sum(0)
        for name in states[0]
    }


@torch.no_grad()
def accuracy(network: nn.Module, rows: Rows) -> float:
    """Share of the rows that are right."""
    return float((network(rows[0]).argmax(1) == rows[1]).float().mean())


def rounds_to_target(cell: Cell, rate: float, seed: int, train: Rows, test: Rows, clients: int = CLIENTS) -> float:
    """Rounds by the paper's rule; infinite where the cap comes first."""
    draw = torch.Generator().manual_seed(seed)
    owned = dealt(train[1], cell.split, clients, draw)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = two_layers(train[0][0].numel(), int(train[1].max()) + 1)
    curve: list[Point] = []
    while len(curve) < cell.cap and (not curve or curve[-1][1] < cell.target):
        start = {name: value.clone() for name, value in network.state_dict().items()}
        states, sizes = [], []
        for client in torch.randperm(clients, generator=draw)[: participants_of(cell.fraction, clients)].tolist():
            network.load_state_dict(start)
            x, y = (part[owned[client]] for part in train)
            train_client(network, (x, y), cell.batch_size or len(y), rate, draw)
            states.append({name: value.clone() for name, value in network.state_dict().items()})
            sizes.append(len(y))
        network.load_state_dict(averaged(states, sizes))
        curve.append((len(curve) + 1.0, accuracy(network, test)))
    reached = crossing(curve, cell.target)
    return float("inf") if reached is None else reached


def run_plain(store: Store, seeds: Sequence[int], folder: Path, cache_dir: str | None) -> None:
    """Train what is not on file yet, at the rates that the platform's search found."""
    corpus = source_of("2nn", folder, cache_dir).load()
    train, test = ((x.float() / 255, y) for x, y in ((corpus.train_x, corpus.train_y), (corpus.test_x, corpus.test_y)))
    known: dict[str, Any] = read_json(store.folder / FILE) or {}
    for cell in plain_cells():
        rate = search_of(store, cell, seeds[0]).best
        require(rate is not None, "plain", cell.name, "a cell with a rate on file; train table1 first")
        assert rate is not None
        for seed in seeds:
            name = Run(cell, rate, seed).name
            if name not in known:
                known[name] = rounds_to_target(cell, rate, seed, train, test)
                write_json(store.folder / FILE, known)
            print(f"{name}: {known[name]:.1f} rounds in a plain loop", flush=True)


def plain_cells() -> list[Cell]:
    """The cells that are trained in both loops."""
    return [cell for cell in TABLES["table1"].cells if cell.name in NAMES]
