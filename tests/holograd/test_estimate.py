"""What the estimate is on average and how far off: invariants 3, 5, 6, 9 and 10, within stated standard errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.holograd import predictions
from lightning_sfl.core.holograd.directions import DirectionKind, Directions, orthonormal_rows
from lightning_sfl.core.holograd.projection import Projection, project_gradients, project_loss
from lightning_sfl.core.holograd.robust import MEAN
from lightning_sfl.core.holograd.synthesis import Scale, factor, synthesize
from tests.holograd.made import cos, no_basis, normal, sets, spread

ERRORS = 4.0  # standard errors; some thirty comparisons are made here


def estimates(
    gradient: Tensor, trials: int, count: int, scale: Scale = "unbiased", kind: DirectionKind = "random", seed: int = 0
) -> list[Tensor]:
    size = len(gradient)
    found = factor(count, size, kind, scale)
    return [
        found * directions.combine(directions.project(gradient[None])[0])
        for directions in sets(trials, count, no_basis(size), kind, seed)
    ]


def near(values: list[float], wanted: float) -> None:
    mean, error = spread(values)
    assert abs(mean - wanted) < ERRORS * error, (mean, wanted, error)
    assert error < 0.06 * abs(wanted)


@pytest.mark.parametrize(("count", "size"), [(16, 500), (100, 200)])
def test_squared_error_and_norm_of_every_scale(count: int, size: int) -> None:
    gradient = normal(size)
    square = float(gradient @ gradient)
    shares: dict[Scale, tuple[float, float | None]] = {
        "unbiased": ((size - 1) / count, 1 + (size - 1) / count),
        "mmse": ((size - 1) / (count + size - 1), None),
        "norm": (float("nan"), (count + size - 1) / size),
    }
    for scale, (error, norm) in shares.items():
        found = estimates(gradient, 200, count, scale)
        if error == error:
            near([float((e - gradient).square().sum()) / square for e in found], error)
        if norm is not None:
            near([float(e @ e) / square for e in found], norm)


@pytest.mark.parametrize(("count", "size"), [(16, 2000), (128, 500), (60, 60)])
def test_cosine_and_its_spread(count: int, size: int) -> None:
    gradient = normal(size)
    values = [cos(e, gradient) for e in estimates(gradient, 400, count)]
    near([v * v for v in values], count / (count + size - 1) * (1 - (1 / (2 * count) if count < size else 0.01)))
    mean, error = spread(values)
    # the mean of the cosine itself lies about 1/(4K) below the root of the mean square
    assert abs(mean / predictions.cosine(count, size) - 1) < 1 / (2 * count) + ERRORS * error / mean
    deviation = error * len(values) ** 0.5 / mean
    assert deviation == pytest.approx(predictions.cosine_deviation(count, size), rel=0.15)


def test_orthogonal_directions() -> None:
    gradient, count, size = normal(200), 50, 200
    found = estimates(gradient, 300, count, kind="orthogonal")
    near([float((e - gradient).square().sum() / gradient.square().sum()) for e in found], size / count - 1)
    near([cos(e, gradient) ** 2 for e in found], count / size)
    shrunk = estimates(gradient, 300, count, "mmse", "orthogonal")
    near([float((e - gradient).square().sum() / gradient.square().sum()) for e in shrunk], 1 - count / size)


def test_unbiased_and_the_mean_of_trials() -> None:
    gradient, count, trials, size = normal(1000), 64, 100, 1000
    errors, cosines = [], []
    for seed in range(5):
        mean = torch.stack(estimates(gradient, trials, count, seed=seed)).mean(0)
        errors.append(float((mean - gradient).norm() / gradient.norm()))
        cosines.append(cos(mean, gradient))
    wanted = ((size - 1) / (count * trials)) ** 0.5
    assert wanted == pytest.approx(0.395, abs=5e-4)
    near(errors, wanted)
    near(cosines, 1 / (1 + wanted**2) ** 0.5)


# --- several clients --------------------------------------------------------------------------------------------------


def test_shared_directions_estimate_the_weighted_mean_gradient() -> None:
    gradients, shares = normal(4, 300), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    directions = next(sets(1, 20, no_basis(300)))
    joint = directions.combine(MEAN.aggregate(directions.project(gradients), shares))
    direct = directions.combine(directions.project((shares @ gradients)[None])[0])
    assert (joint - direct).norm() / direct.norm() < 1e-12


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_shared_and_partitioned_errors(common: float) -> None:
    """Partitioned wins where sum of squares < n^2 times the square of the mean; for equal gradients by a factor n."""
    n, size, count = 4, 300, 20
    gradients = common * normal(1, size) + (1 - common) * normal(n, size, seed=3)
    mean = gradients.mean(0)
    scale = factor(count, size, "random", "unbiased")
    shared, partitioned = [], []
    for step in range(300):
        own = list(sets(n, count, no_basis(size), seed=1000 + step))
        scalars = own[0].project(gradients).mean(0)
        shared.append(float((scale * own[0].combine(scalars) - mean).square().sum()))
        parts = [d.combine(scale * d.project(g[None])[0]) for d, g in zip(own, gradients, strict=True)]
        partitioned.append(float((torch.stack(parts).mean(0) - mean).square().sum()))
    near(shared, (size - 1) / count * float(mean.square().sum()))
    near(partitioned, (size - 1) / (n * count) * float(gradients.square().sum(1).mean()))


def test_shrinking_of_averaged_sets() -> None:
    assert factor(20, 300, "random", "mmse", clients=4) == pytest.approx(300 / 20 * 80 / (80 + 299))
    assert factor(20, 300, "random", "norm") == pytest.approx((300 / 20) ** 0.5)
    assert factor(20, 300, "random", "mmse") == pytest.approx(300 / (20 + 299))
    assert factor(300, 300, "orthogonal", "mmse") == 1


# --- basis and complement ---------------------------------------------------------------------------------------------


def with_basis(gradient: Tensor, basis: Tensor, count: int, trials: int) -> list[Tensor]:
    scale = factor(count, basis.shape[1] - len(basis), "random", "unbiased")
    found = []
    for directions in sets(trials, count, basis):
        scalars = project_gradients(gradient[None], directions)[0]
        found.append(synthesize(scalars[: len(basis)], [scale * scalars[len(basis) :]], [directions]))
    return found


@pytest.mark.parametrize("rank", [1, 10])
def test_basis_and_complement(rank: int) -> None:
    size, count = 300, 16
    gradient, basis = normal(size), orthonormal_rows(normal(rank, size, seed=9))
    gradient += 20 * basis[0]
    square, inside = float(gradient @ gradient), basis @ gradient
    gamma = float(inside @ inside) / square
    found = with_basis(gradient, basis, count, 400)
    for estimate in found[:5]:
        torch.testing.assert_close(basis @ estimate, inside, rtol=0, atol=1e-11)
    near([float((e - gradient).square().sum()) / square for e in found], (1 - gamma) * (size - rank - 1) / count)
    bias = float((torch.stack(found).mean(0) - gradient).square().sum()) / square
    assert bias == pytest.approx((1 - gamma) * (size - rank - 1) / count / 400, rel=0.3)


def test_directions_inside_a_subspace() -> None:
    """ADC as specified: unit v = U'z / |U'z| and the scale r; the coordinates themselves have no variance."""
    rank, size, count = 8, 200, 5
    rows, gradient = orthonormal_rows(normal(rank, size, seed=2)), normal(size) + 0
    gradient += 5 * rows[0]
    gamma = float((rows @ gradient).square().sum() / gradient.square().sum())
    errors, total = [], torch.zeros_like(gradient)
    for directions in sets(1500, count, no_basis(rank)):
        inside = torch.cat([block for _, block in directions.blocks()]) @ rows
        estimate = rank / count * ((inside @ gradient) @ inside)
        total += estimate / 1500
        errors.append(float((estimate - gradient).square().sum() / gradient.square().sum()))
    near(errors, predictions.captured(gamma, count, rank))
    captured = rows.T @ (rows @ gradient)
    bias = float((total - captured).norm() / captured.norm())
    assert bias < 2 * (7 / count / 1500) ** 0.5
    directions = Directions([], rows)
    assert torch.equal(synthesize(rows @ gradient, [gradient[:0]], [directions]), (rows @ gradient) @ rows)


# --- a quadratic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["grad", "jvp", "fd"])
def test_scalars_of_a_quadratic(way: Projection) -> None:
    """f = theta'H theta / 2: a_j = theta'H v_j, which central differences have exactly too."""
    size = 30
    root, theta = normal(size, size, seed=8), normal(size, seed=4)
    hessian = root @ root.T
    directions = next(sets(1, 12, no_basis(size)))
    found = project_loss(lambda values: values[0] @ hessian @ values[0] / 2, [theta], directions, way)
    wanted = torch.cat([block for _, block in directions.blocks()]) @ hessian @ theta
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_isotropic_quadratic_contracts_as_said() -> None:
    size, count, steps = 100, 20, 60
    ratios = []
    for seed in range(20):
        theta = normal(size, seed=seed)
        for directions in sets(steps, count, no_basis(size), seed=seed):
            before = float(theta @ theta)
            theta = theta - factor(count, size, "random", "mmse") * directions.combine(
                directions.project(theta[None])[0]
            )
            ratios.append(float(theta @ theta) / before)
    near(ratios, predictions.contraction(count, size))


def test_curvature_along_the_estimate() -> None:
    size, count = 40, 10
    hessian = torch.diag(torch.linspace(0.1, 3, size, dtype=torch.float64))
    theta = normal(size, seed=4)
    gradient = hessian @ theta
    straight = float(gradient @ hessian @ gradient)
    square = float(gradient @ gradient)
    wanted = (1 - 1 / count) * straight + size / (count * (size + 2)) * (float(hessian.trace()) * square + 2 * straight)
    near([float(e @ hessian @ e) for e in estimates(gradient, 2000, count)], wanted)
