"""Gradient divergence against plain autograd, and that looking leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import GradientDivergence
from lightning_sfl.callbacks import gradient_divergence as home
from lightning_sfl.core import events
from lightning_sfl.core.population import Population

SIZES = [6, 1, 9, 4]


class Halves:
    """What the watcher asks a method for."""

    seed = 3

    def __init__(self, norm: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Linear(5, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh(), nn.Dropout(0.5)]
            self.client_half = nn.Sequential(*layers).double()
            self.server_half = nn.Linear(6, 3).double()
            x, y = torch.randn(sum(SIZES), 5).double(), torch.randint(0, 3, (sum(SIZES),))
        rows = np.split(np.random.default_rng(0).permutation(sum(SIZES)), np.cumsum(SIZES)[:-1])
        self.population = Population(x, y, tuple(rows))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels)


def look(watcher: GradientDivergence, method: Halves, stage: Any, participants: tuple[int, ...]) -> dict[str, Any]:
    told = stage([])
    watcher.on_round_start(method, events.RoundStart(0, participants, method.client_half, method.server_half))
    for slot, client in enumerate(participants):
        weight = float(client + 1)
        watcher.on_client_end(
            method, events.ClientEnd(0, slot, client, method.client_half, None, SIZES[client], 1, weight)
        )
    told.start([])
    told.watchers = [watcher]
    told.tell = lambda *_: None
    return told.end(rows=[])


def explicit(method: Halves, participants: tuple[int, ...]) -> dict[str, np.ndarray]:
    client, server = copy.deepcopy(method.client_half).eval(), copy.deepcopy(method.server_half)
    rows: dict[str, list[np.ndarray]] = {"client": [], "server": []}
    for participant in participants:
        x, y = method.population.take(method.population.rows[participant])
        client.zero_grad()
        server.zero_grad()
        cross_entropy(server(client(x)), y).backward()
        for name, half in {"client": client, "server": server}.items():
            rows[name].append(np.concatenate([p.grad.numpy().ravel() for p in half.parameters()]))
    blocks = {name: np.stack(gradients) for name, gradients in rows.items()}
    return {**blocks, "full": np.hstack([blocks["client"], blocks["server"]])}


@pytest.mark.parametrize("scheme", ["samples", "aggregation", "uniform"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_whole_local_gradients(stage: Any, monkeypatch: pytest.MonkeyPatch, scheme: Any, norm: bool) -> None:
    monkeypatch.setattr(home, "ROWS_AT_ONCE", 2)
    method, participants = Halves(norm), (2, 0, 3, 1)
    record = look(GradientDivergence(weights=scheme), method, stage, participants)
    weights = {
        "samples": [SIZES[c] for c in participants], "aggregation": [c + 1 for c in participants], "uniform": [1] * 4,
    }[scheme]  # fmt: skip
    shares = np.array(weights) / sum(weights)
    for block, gradients in explicit(method, participants).items():
        mean = shares @ gradients
        apart = np.linalg.norm(gradients - mean, axis=1)
        found = {name: record["scalars"][f"gdiv/{block}_{name}"] for name in ("mean", "rms", "rel", "percoord")}
        assert found["mean"] == pytest.approx(shares @ apart)
        assert found["rms"] == pytest.approx(np.sqrt(shares @ apart**2))
        assert found["rel"] == pytest.approx(shares @ apart / np.linalg.norm(mean))
        assert found["percoord"] == pytest.approx(shares @ apart / np.sqrt(gradients.shape[1]))
        if block == "client":
            assert [record["clients"][str(c)]["gdiv"] for c in participants] == pytest.approx(apart)
    squares = {b: record["scalars"][f"gdiv/{b}_rms"] ** 2 for b in ("client", "server", "full")}
    assert squares["full"] == pytest.approx(squares["client"] + squares["server"])
    splits = {b: record["scalars"][f"gdiv/{b}_splithalf"] for b in ("client", "server", "full")}
    assert splits["full"] == pytest.approx(splits["client"] + splits["server"])


@pytest.mark.parametrize("bn_mode", ["running", "batch"])
def test_looking_leaves_no_trace(stage: Any, bn_mode: Any) -> None:
    method = Halves(norm=True)
    method.client_half.train()
    method.client_half[1].eval()
    method.server_half.weight.grad = torch.ones_like(method.server_half.weight)
    before = [copy.deepcopy(half.state_dict()) for half in (method.client_half, method.server_half)]
    modes, generator = [m.training for m in method.client_half.modules()], torch.get_rng_state()
    record = look(GradientDivergence(bn_mode=bn_mode), method, stage, (0, 2))
    assert record["scalars"]["gdiv/client_mean"] > 0
    for half, state in zip((method.client_half, method.server_half), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in half.state_dict().items())
    assert [m.training for m in method.client_half.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in method.client_half.parameters())
    assert torch.equal(method.server_half.weight.grad, torch.ones_like(method.server_half.weight))


def test_batch_statistics_are_another_measurement(stage: Any) -> None:
    running, batch = (
        look(GradientDivergence(bn_mode=mode), Halves(norm=True), stage, (0, 2))["scalars"]["gdiv/client_mean"]
        for mode in ("running", "batch")
    )
    assert abs(running - batch) > 1e-3


def test_max_rows_and_lone_clients(stage: Any) -> None:
    method = Halves()
    exact = look(GradientDivergence(max_rows=100), method, stage, (0, 2))["scalars"]
    assert exact == look(GradientDivergence(), method, stage, (0, 2))["scalars"]
    assert exact != look(GradientDivergence(max_rows=3), method, stage, (0, 2))["scalars"]
    alone = look(GradientDivergence(), method, stage, (0,))["scalars"]
    assert alone == {"gdiv/n_skipped": 15}
    one_row_each = look(GradientDivergence(), method, stage, (1, 0))["scalars"]
    assert one_row_each["gdiv/n_skipped"] == 3


def test_a_frozen_half_is_no_block(stage: Any) -> None:
    method = Halves()
    method.client_half.requires_grad_(False)
    scalars = look(GradientDivergence(), method, stage, (0, 2))["scalars"]
    assert scalars["gdiv/full_mean"] == pytest.approx(scalars["gdiv/server_mean"])
    assert not [tag for tag in scalars if "client" in tag]
