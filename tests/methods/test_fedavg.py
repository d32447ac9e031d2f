"""FedAvg on quadratics F_k = a_k (w - b_k)^2 / 2: where it goes in a round, and where it comes to rest."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sfl.core.rounds import Work, draw_batches
from lightning_sfl.methods import SFLV1, FedAvg, FedSGD, SplitMethod
from tests.methods.quadratics import clients, half_square, line
from tests.tiny import build, fit, sgd

LR = 0.1


@pytest.fixture(autouse=True)
def quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitMethod, "loss", half_square)


def after(cls: type[SplitMethod], start: float, steps: int, rounds: int, a: list[float], b: list[float]) -> float:
    options = {"batch_size": None, "local_steps": steps, "participants": len(a)}
    method = build(cls, line(start), "lower", client_optimizer=sgd(LR), server_optimizer=sgd(LR), **options)
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
