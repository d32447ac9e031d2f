"""Closed forms of gradient divergence, drift, initial distance and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_sfl.measures.alignment import alignment
from lightning_sfl.measures.counts import magnitude_per_step, path_per_step
from lightning_sfl.measures.divergence import divergence, split_half
from lightning_sfl.measures.drift import Path, drift, whole_sum
from lightning_sfl.measures.gram import cross_gram, gram, weights_of
from lightning_sfl.measures.initial import initial_distance


def gram_of(x: np.ndarray) -> torch.Tensor:
    return gram([[torch.tensor(row)] for row in x])


def uniform(n: int) -> torch.Tensor:
    return weights_of("uniform", [0.0] * n, [])


@pytest.mark.parametrize("n", [2, 7])
def test_orthogonal_gradients(n: int) -> None:
    found = divergence(gram_of(2.0 * np.eye(n)), uniform(n), coordinates=n)
    expected = 2 * math.sqrt(1 - 1 / n)
    assert found.per_client.tolist() == pytest.approx([expected] * n)
    assert (found.mean, found.rms) == (pytest.approx(expected), pytest.approx(expected))
    assert found.percoord == pytest.approx(expected / math.sqrt(n))
    assert found.rel == pytest.approx(expected / (2 / math.sqrt(n)))


def test_quadratic_clients_diverge_by_the_spread_of_their_optima_everywhere() -> None:
    draw = np.random.default_rng(0)
    optima, weights = draw.normal(size=(5, 6)), draw.uniform(0.5, 2, size=5)
    shares = torch.tensor(weights / weights.sum())
    spread = np.linalg.norm(optima - (weights / weights.sum()) @ optima, axis=1)
    for x in (np.zeros(6), draw.normal(size=6)):
        found = divergence(gram_of(x - optima), shares, 6)
        assert found.per_client.numpy() == pytest.approx(spread)
        assert found.rms**2 == pytest.approx(float(shares.numpy() @ spread**2))
        lr, steps = 0.1, 4
        update = (1 - (1 - lr) ** steps) * (optima - x)
        assert alignment(gram_of(update), shares).cos_pair == pytest.approx(
            alignment(gram_of(x - optima), shares).cos_pair
        )


def test_squared_divergence_adds_over_blocks() -> None:
    draw = np.random.default_rng(3)
    client, server, shares = gram_of(draw.normal(size=(4, 5))), gram_of(draw.normal(size=(4, 3))), uniform(4)
    parts = [divergence(block, shares, 1).rms ** 2 for block in (client, server)]
    assert divergence(client + server, shares, 1).rms ** 2 == pytest.approx(sum(parts))


def test_one_client_or_no_mean_gradient() -> None:
    alone = divergence(gram_of(np.ones((1, 3))), uniform(1), 3)
    assert all(math.isnan(value) for value in (alone.mean, alone.rms, alone.rel, alone.percoord))
    assert math.isnan(split_half(gram_of(np.ones((1, 3))), uniform(1)))
    assert math.isnan(divergence(gram_of(np.array([[1.0, 0], [-1, 0]])), uniform(2), 2).rel)


def test_split_halves_remove_the_bias_of_batch_noise() -> None:
    n, size, repetitions = 5, 50, 4000
    draw = np.random.default_rng(11)
    means = draw.normal(scale=0.3, size=(n, size))
    true = float(((means - means.mean(0)) ** 2).sum(1).mean())
    halves = means + draw.normal(size=(2, repetitions, n, size))
    centred = halves - halves.mean(2, keepdims=True)
    explicit = (centred[0] * centred[1]).sum(-1).mean(-1)
    for k in range(3):
        rows = [[[torch.tensor(row)] for row in half[k]] for half in halves]
        assert split_half(cross_gram(*rows), uniform(n)) == pytest.approx(explicit[k])
    error = float(explicit.std() / math.sqrt(repetitions))
    assert abs(explicit.mean() - true) < max(0.02 * true, 4 * error)
    whole = halves.mean(0)
    naive = float((((whole - whole.mean(1, keepdims=True)) ** 2).sum(-1)).mean())
    assert naive - true > 10 * error


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_drift_under_a_constant_gradient(steps: int) -> None:
    lr, squared = 0.2, 3.0
    distances = [(lr * b) ** 2 * squared for b in range(1, steps + 1)]
    found = drift([Path(sum(distances), steps, distances[-1])], [1.0], distances[-1])
    assert found.traj == pytest.approx(lr**2 * squared * (steps + 1) * (2 * steps + 1) / 6)
    assert found.traj_sw == pytest.approx(found.traj)
    assert found.end == pytest.approx((steps * lr) ** 2 * squared)
    assert found.norm == pytest.approx(found.traj / found.update_sq)


def test_drift_of_unequal_paths() -> None:
    found = drift([Path(6.0, 2, 4.0), Path(4.0, 4, 2.0), Path(math.nan, 1, 3.0)], [0.5, 0.25, 0.25], 0.0)
    assert found.traj == pytest.approx(2.0)
    assert found.traj_sw == pytest.approx(10 / 6)
    assert found.end == pytest.approx(3.0)
    assert found.end_w == pytest.approx(3.25)
    assert math.isnan(found.norm)
    nobody = drift([], [], 1.0)
    assert math.isnan(nobody.traj)
    assert math.isnan(nobody.end_w)


def test_sampled_steps_stand_for_all_and_none_for_nothing() -> None:
    assert whole_sum(10.0, 7, 2) == pytest.approx(10 * 7 / 3)
    assert whole_sum(10.0, 7, 1) == 10.0
    assert math.isnan(whole_sum(0.0, 2, 3))


def test_initial_distance_and_soft_pull() -> None:
    draw = np.random.default_rng(5)
    branches = draw.normal(size=(4, 6))
    pairs = [((branches[i] - branches[j]) ** 2).sum() for i in range(4) for j in range(i)]
    anchor = branches.mean(0)
    found = initial_distance(gram_of(branches - anchor), float(np.linalg.norm(anchor)))
    assert found.dist == pytest.approx(math.sqrt(np.mean(pairs)))
    assert found.rel == pytest.approx(found.dist / np.linalg.norm(anchor))
    assert found.offsets.numpy() == pytest.approx(np.linalg.norm(branches - anchor, axis=1))
    pull = 0.1
    pulled = (branches + pull * anchor) / (1 + pull)
    assert initial_distance(gram_of(pulled - anchor), 1.0).dist == pytest.approx(found.dist / (1 + pull))
    same = initial_distance(torch.zeros(3, 3, dtype=torch.float64), 2.0)
    assert (same.dist, same.rel, same.offsets.tolist()) == (0.0, 0.0, [0.0] * 3)
    assert math.isnan(initial_distance(torch.zeros(1, 1, dtype=torch.float64), 2.0).dist)


def test_server_magnitudes() -> None:
    assert magnitude_per_step(6.0, 3) == 2.0
    assert magnitude_per_step(6.0, 12, branches=4) == 2.0
    assert path_per_step(6.0, 4) == 1.5
    assert math.isnan(magnitude_per_step(1.0, 0))
    assert math.isnan(path_per_step(0.0, 0))
