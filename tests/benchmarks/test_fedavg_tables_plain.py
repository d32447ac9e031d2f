"""The loop of plain PyTorch beside the FedAvg tables, and its part of the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.fedavg_tables import report
from benchmarks.fedavg_tables.cells import NON_IID
from benchmarks.fedavg_tables.plain_loop import averaged, dealt, plain_cells, rounds_to_target, train_client, two_layers
from benchmarks.fedavg_tables.store import Store
from tests.benchmarks.made_tables import IID_CELL, put


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("split", ["iid", "noniid"])
def test_every_row_is_dealt_once(split: str) -> None:
    labels = torch.randint(10, (400,), generator=generator())
    owned = dealt(labels, split, 20, generator(1))
    assert torch.cat(owned).sort().values.tolist() == list(range(400))
    assert {len(rows) for rows in owned} == {20}
    kinds = [len(labels[rows].unique()) for rows in owned]
    assert (max(kinds) <= 4) == (split == NON_IID)  # two runs of ten sorted rows meet two labels each at most
    assert [rows.tolist() for rows in dealt(labels, split, 20, generator(2))] != [rows.tolist() for rows in owned]


def test_a_whole_batch_is_one_step_of_gradient_descent() -> None:
    network, x, y = two_layers(4, 3), torch.randn(6, 4, generator=generator()), torch.tensor([0, 1, 2, 0, 1, 2])
    before = [weight.detach().clone() for weight in network.parameters()]
    gradients = torch.autograd.grad(cross_entropy(network(x), y), list(network.parameters()))
    train_client(network, (x, y), 6, 0.5, generator())
    for weight, old, gradient in zip(network.parameters(), before, gradients, strict=True):
        assert torch.allclose(weight, old - 0.5 * gradient, atol=1e-7)


def test_clients_count_by_their_rows() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 10.0])}]
    assert averaged(states, [3, 1])["w"].tolist() == [2.0, 4.0]


def test_the_loop_ends_at_the_target_or_the_cap() -> None:
    y = torch.arange(200) % 2
    x = torch.randn(200, 1, 2, 2, generator=generator()) + 3.0 * (2 * y - 1).view(-1, 1, 1, 1)
    easy = replace(IID_CELL, targets=(0.95,), cap=30)
    found = rounds_to_target(easy, 0.1, 0, (x, y), (x, y), clients=10)
    assert 1 <= found <= 30
    assert rounds_to_target(easy, 0.1, 0, (x, y), (x, y), clients=10) == found
    assert math.isinf(rounds_to_target(replace(easy, cap=2), 0.1, 0, (x, y), (x, y + 2), clients=10))


def test_both_loops_stand_side_by_side_on_the_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert "Not run." in report.plain_part(store, [0, 1])
    for cell in plain_cells():
        put(store, cell, 0.1, 0, 40.0)
        put(store, cell, 0.1, 1, 44.0)
    known = {f"{cell.name}_lr0.1_seed{seed}": 41.0 + 2 * seed for cell in plain_cells() for seed in (0, 1)}
    (tmp_path / "plain.json").write_text(json.dumps({**known, f"{IID_CELL.name}_lr0.2_seed0": 1.0}))
    assert "| 2NN C=0.1, IID B=10 | 0.1 | 42 \u00b1 3 | 42 \u00b1 1 | 87 |" in report.plain_part(store, [0, 1])
