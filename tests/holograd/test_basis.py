"""Momentum and subspace, ours and the paper's: invariants 7 and 8."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.holograd.legacy import LegacyMomentum, LegacySubspace
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.holograd.basis import Basis, BasisChoice, captured_energy, oja
from lightning_sfl.core.holograd.directions import orthonormal_rows
from lightning_sfl.core.holograd.projection import project_gradients
from lightning_sfl.core.holograd.synthesis import factor, synthesize
from tests.holograd.made import commitment, cos, no_basis, normal, sets


def principal_cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.linalg.svdvals(orthonormal_rows(one) @ orthonormal_rows(other).T)


# --- the paper's rules, kept as regressions ---------------------------------------------------------------------------


def test_the_papers_momentum_never_turns() -> None:
    start = normal(200)
    legacy = LegacyMomentum(start)
    scalars = []
    for step in range(100):
        gradient = 0.3 * normal(200, seed=step)
        scalars.append(abs(float(gradient @ start / start.norm())))
        legacy.step(gradient)
    assert abs(cos(legacy.momentum, start)) == pytest.approx(1, abs=1e-12)
    product = math.prod(0.9 + 0.1 * scalar for scalar in scalars)
    assert legacy.sigma == pytest.approx(product, rel=1e-9)
    assert legacy.sigma < 0.01


def test_the_papers_subspace_never_turns() -> None:
    size, rank = 300, 8
    start = orthonormal_rows(normal(rank, size))
    legacy = LegacySubspace(start, alpha=0.02, every=10)
    gradient = normal(size, seed=7)
    gradient /= gradient.norm()
    before = legacy.captured(gradient)
    for step in range(60):
        estimate = legacy.step(gradient, normal(16, rank, seed=step))
        assert captured_energy(legacy.rows, estimate) == pytest.approx(1, abs=1e-9)
    assert principal_cosines(legacy.rows, start).min() == pytest.approx(1, abs=1e-9)
    assert legacy.captured(gradient) == pytest.approx(before, rel=1e-7)


# --- ours -------------------------------------------------------------------------------------------------------------


def test_with_exploration_the_momentum_turns_to_the_gradient() -> None:
    size, count = 200, 63
    gradient = normal(size)
    basis = Basis(BasisChoice("momentum"), [], no_basis(size).sum(0))
    turned = []
    for step in range(40):
        directions = next(sets(1, count + 1 - len(basis.rows), basis.rows, seed=step))
        scalars = project_gradients(gradient[None], directions)[0]
        coordinates, others = scalars[: len(basis.rows)], scalars[len(basis.rows) :]
        scale = factor(len(others), size - len(coordinates), "random", "mmse")
        basis.learn(synthesize(coordinates, [scale * others], [directions]))
        turned.append(cos(basis.memory, gradient))
    assert turned[0] == pytest.approx((64 / 263) ** 0.5, rel=0.25)
    assert turned[-1] > 0.95
    torch.testing.assert_close(basis.rows[0], basis.memory / basis.memory.norm())


def test_momentum_starts_empty() -> None:
    basis = Basis(BasisChoice("momentum", beta=0.5), [], torch.zeros(4))
    assert basis.rows.shape == (0, 4)
    basis.learn(torch.zeros(4))
    assert basis.rows.shape == (0, 4)
    basis.learn(torch.tensor([2.0, 0, 0, 0]))
    basis.learn(torch.tensor([0, 4.0, 0, 0]))
    assert basis.memory.tolist() == [0.5, 2, 0, 0]


def planted(size: int, rank: int, step: int) -> Tensor:
    return normal(rank, seed=100 + step) @ orthonormal_rows(normal(rank, size, seed=42))


def test_a_planted_subspace_is_learned_from_true_gradients() -> None:
    size = 400
    basis = Basis(BasisChoice("subspace", rank=8, rate=1.0), commitment().seeds(0, 8), torch.zeros(size).double())
    before = sum(captured_energy(basis.rows, planted(size, 4, t)) for t in range(10)) / 10
    for step in range(150):
        basis.learn(planted(size, 4, step))
    after = sum(captured_energy(basis.rows, planted(size, 4, 500 + t)) for t in range(10)) / 10
    assert before < 0.05
    assert after > 0.99


def test_a_random_start_captures_rank_over_size() -> None:
    values = []
    for seed in range(200):
        basis = Basis(BasisChoice("subspace", rank=8), commitment(seed).seeds(0, 8), torch.zeros(250).double())
        values.append(captured_energy(basis.rows, normal(250, seed=seed)))
    assert sum(values) / 200 == pytest.approx(8 / 250, rel=0.1)  # its relative error is sqrt(2/8/200) = 3.5 %


def test_captured_energy_of_rows_that_are_not_orthonormal() -> None:
    """The squared length of the plain projection reaches the rank; the Gram form agrees with ours and stays below 1."""
    gradient = normal(60)
    rows = 0.01 * normal(5, 60, seed=1) + gradient
    units = rows / rows.norm(dim=1, keepdim=True)
    assert float((units @ gradient).square().sum() / gradient.square().sum()) > 4
    inside = units @ gradient
    gram = float(inside @ torch.linalg.solve(units @ units.T, inside) / gradient.square().sum())
    assert captured_energy(units, gradient) == pytest.approx(gram, rel=1e-6)
    assert 0.99 < captured_energy(units, gradient) <= 1 + 1e-12
    for seed in range(20):
        assert captured_energy(normal(7, 30, seed=seed), normal(30, seed=99 + seed)) <= 1 + 1e-12


def test_ojas_step_by_hand() -> None:
    rows, signal = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([0.6, 0.8])
    torch.testing.assert_close(oja(rows, signal, 0.5), torch.tensor([[1.18, 0.24], [0.24, 1.32]]))


@pytest.mark.parametrize(
    ("key", "options"),
    [("kind", {"kind": "x"}), ("beta", {"beta": 1.0}), ("rank", {"rank": 0}), ("rate", {"rate": float("nan")})],
)
def test_what_cannot_work_is_refused(key: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"basis.{key}=.* is not allowed"):
        BasisChoice(**options)  # type: ignore[arg-type]
