"""Optimizers of the merged update against the paper's Algorithm 2, number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.adaptive import FedAdagrad, FedAdam, FedYogi

KINDS = {"FedAdam": FedAdam, "FedYogi": FedYogi, "FedAdagrad": FedAdagrad}
OPTIONS = {"lr": 0.3, "beta1": 0.8, "tau": 0.05}


def spread(kind: str, v: Any, d: Any, beta2: float) -> Any:
    if kind == "FedAdagrad":
        return v + d**2
    if kind == "FedAdam":
        return beta2 * v + (1 - beta2) * d**2
    return v - (1 - beta2) * d**2 * np.sign(v - d**2)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_algorithm_2(kind: str) -> None:
    draw = np.random.default_rng(0)
    w, m, v = draw.normal(size=6), np.zeros(6), np.full(6, 0.05**2)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    frozen = torch.nn.Parameter(torch.ones(2))
    beta2 = {} if kind == "FedAdagrad" else {"beta2": 0.7}
    optimizer = KINDS[kind]([parameter, frozen], **OPTIONS, **beta2)
    for _ in range(5):
        d = draw.normal(size=6)
        m, v = 0.8 * m + 0.2 * d, spread(kind, v, d, 0.7)
        w = w + 0.3 * m / (np.sqrt(v) + 0.05)
        parameter.grad = torch.from_numpy(-d)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12)
    assert frozen.tolist() == [1, 1]


def test_with_a_large_tau_and_no_moments_it_is_a_plain_step() -> None:
    """lr = tau: w + D, as v, tau^2 and more, is made up for."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = FedAdam([parameter], lr=2e6, beta1=0.0, beta2=0.5, tau=1e6)
    parameter.grad = -torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([2 / (1 + math.sqrt(0.5)) * x for x in (1, -2, 3)], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_through_a_state_dict(kind: str) -> None:
    def walked(steps: int, start: Any = None) -> tuple[Any, Any]:
        parameter = torch.nn.Parameter(torch.ones(4) if start is None else start[0].clone())
        optimizer = KINDS[kind]([parameter], lr=0.1)
        if start is not None:
            optimizer.load_state_dict(start[1])
        for _ in range(steps):
            parameter.grad = parameter.detach().clone()
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    assert torch.equal(walked(3, walked(2))[0], walked(5)[0])


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.0), ("lr", math.nan), ("beta1", 1.0), ("beta2", -0.1), ("tau", 0.0)]
)
def test_ranges(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value!r}: "):
        FedYogi([torch.nn.Parameter(torch.ones(1))], **{key: value})
