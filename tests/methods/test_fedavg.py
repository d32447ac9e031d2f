"""FedAvg on quadratics F_k = a_k (w - b_k)^2 / 2: where it goes in a round, and where it comes to rest."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.core.rounds import Work, draw_batches
from lightning_sfl.methods import SFLV1, FedAvg, FedSGD, SplitMethod
from tests.tiny import Rows, build, fit, sgd

LR = 0.1


class Residual(nn.Module):
    """sqrt(a) (w - b), from rows (sqrt(a), -sqrt(a) b)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.w + x[:, 1:]


class Idle(nn.Module):
    """Passes its input on; its one parameter has a gradient of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, residual: Tensor) -> Tensor:
        return residual + 0 * self.z


def half_square(self: SplitMethod, logits: Tensor, labels: Tensor) -> Tensor:
    return logits.square().mean() / 2


@pytest.fixture(autouse=True)
def quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitMethod, "loss", half_square)


def clients(a: list[float], b: list[float]) -> Rows:
    roots = torch.tensor(a, dtype=torch.float64).sqrt()
    x = torch.stack([roots, -roots * torch.tensor(b, dtype=torch.float64)], dim=1)
    return Rows(x, torch.zeros(len(a), dtype=torch.long), [[k] for k in range(len(a))], num_classes=1)


def after(cls: type[SplitMethod], start: float, steps: int, rounds: int, a: list[float], b: list[float]) -> float:
    net = nn.Sequential(OrderedDict(lower=Residual(start), upper=Idle()))
    options = {"batch_size": None, "local_steps": steps, "participants": len(a)}
    method = build(cls, net, "lower", client_optimizer=sgd(LR), server_optimizer=sgd(LR), **options)
    return float(fit(method, clients(a, b), rounds).client_half.state_dict()["lower.w"])


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("start", [-3.0, 0.5])
@pytest.mark.parametrize("cls", [FedAvg, SFLV1])
def test_one_round(cls: type[SplitMethod], start: float, steps: int) -> None:
    a, b = [1.0, 3.0, 0.5], [0.0, 1.0, -2.0]
    ends = [b_k + (1 - LR * a_k) ** steps * (start - b_k) for a_k, b_k in zip(a, b, strict=True)]
    assert after(cls, start, steps, 1, a, b) == pytest.approx(np.mean(ends), abs=1e-12)


@pytest.mark.parametrize(("steps", "rounds", "rest"), [(1, 110, 0.75), (5, 30, 0.670133), (50, 8, 0.501292)])
def test_many_local_steps_come_to_rest_elsewhere(steps: int, rounds: int, rest: float) -> None:
    """a = (1, 3), b = (0, 1): the optimum of the mean is .75; more local steps drift away from it."""
    assert after(FedAvg, 0.0, steps, rounds, [1.0, 3.0], [0.0, 1.0]) == pytest.approx(rest, abs=1e-6)


def test_fedsgd_comes_to_rest_at_the_optimum() -> None:
    assert after(FedSGD, 0.0, 1, 110, [1.0, 3.0], [0.0, 1.0]) == pytest.approx(0.75, abs=1e-9)


@pytest.mark.parametrize(("epochs", "batch_size", "updates"), [(5, 10, 300), (20, 10, 1200), (1, 50, 12), (5, None, 5)])
def test_updates_per_client_and_round(epochs: int, batch_size: int | None, updates: int) -> None:
    """The table of the paper: 600 rows per client."""
    assert len(draw_batches(0, 0, 0, np.arange(600), Work(batch_size, epochs))) == updates
