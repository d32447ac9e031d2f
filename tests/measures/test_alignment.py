"""Closed forms of alignment and disagreement (numbers refer to section 8 of the metrics specification's test list)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.measures import gram as gram_module
from lightning_sfl.measures.alignment import alignment
from lightning_sfl.measures.disagreement import disagreement
from lightning_sfl.measures.gram import cross_gram, gram, trainable, weights_of


def rows_of(matrix: np.ndarray) -> list[list[torch.Tensor]]:
    """Every row split over two tensors of different shape."""
    cut = matrix.shape[1] // 2
    return [[torch.tensor(r[:cut]).reshape(-1, 1), torch.tensor(r[cut:])] for r in matrix]


def measured(matrix: np.ndarray, weights: list[float] | None = None):
    products = gram(rows_of(matrix))
    shares = weights_of("samples", weights or [1.0] * len(matrix), [])
    return alignment(products, shares), disagreement(products, shares)


def close(value: float, rel: float = 1e-6):
    return pytest.approx(value, rel=rel, abs=1e-12)


@pytest.mark.parametrize("theta", [0.3, 1.5, 2.9])
def test_two_unit_updates_at_an_angle(theta: float) -> None:
    found, spread = measured(np.array([[1.0, 0, 0, 0], [math.cos(theta), 0, 0, math.sin(theta)]]))
    assert found.cos_pair == close(math.cos(theta))
    assert spread.var == close((1 - math.cos(theta)) / 2)
    assert spread.A_ratio == close((1 - math.cos(theta)) / 2)
    assert spread.A_null == close(0.5)


@pytest.mark.parametrize("n", [2, 5])
def test_orthogonal_updates_of_equal_norm(n: int) -> None:
    found, spread = measured(3.0 * np.eye(n, 8))
    assert found.cos_pair == close(0)
    assert spread.A_ratio == close(1 - 1 / n)
    assert spread.A_null == close(1 - 1 / n)
    assert spread.A_excess == close(0)
    assert spread.n_eff == close(n)


@pytest.mark.parametrize("n", [3, 6])
def test_a_simplex_has_no_mean(n: int) -> None:
    found, spread = measured(np.eye(n) - 1 / n)
    assert found.cos_pair == close(-1 / (n - 1))
    assert spread.u2 == close(0)
    assert spread.A_ratio == close(1)
    assert math.isnan(spread.A_rel)
    assert found.cos_to_mean.isnan().all()


def test_equicorrelated_updates() -> None:
    n, rho = 5, 0.3
    factor = np.linalg.cholesky((1 - rho) * np.eye(n) + rho)
    assert measured(factor)[1].A_ratio == close((1 - 1 / n) * (1 - rho))


@pytest.mark.parametrize("scale", [7.0, -0.01])
def test_scale_leaves_ratios_alone(scale: float) -> None:
    draws = np.random.default_rng(0).normal(size=(4, 9))
    (one, spread), (other, scaled) = measured(draws), measured(scale * draws)
    assert other.cos_pair == close(one.cos_pair)
    assert other.cos_pair_nw == close(one.cos_pair_nw)
    assert scaled.A_ratio == close(spread.A_ratio)
    assert scaled.A_null == close(spread.A_null)
    assert other.norm_mean == close(abs(scale) * one.norm_mean)
    for name in ("m2", "u2", "var"):
        assert getattr(scaled, name) == close(scale**2 * getattr(spread, name))


def test_a_client_in_two_halves_changes_only_the_null() -> None:
    draws = np.random.default_rng(1).normal(size=(3, 8))
    whole = measured(draws, [2, 3, 5])[1]
    split = measured(np.vstack([draws, draws[:1]]), [1, 3, 5, 1])[1]
    for name in ("m2", "u2", "var", "A_ratio"):
        assert getattr(split, name) == close(getattr(whole, name))
    assert abs(split.A_null - whole.A_null) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_gram_gives_what_explicit_vectors_give(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_module, "COLUMNS", 3)
    draw = np.random.default_rng(seed)
    x, w = draw.normal(size=(6, 11)), draw.uniform(0.1, 1, size=6)
    found, spread = measured(x, w.tolist())
    w /= w.sum()
    mean, norms = w @ x, np.linalg.norm(x, axis=1)
    cosines = x @ x.T / np.outer(norms, norms)
    pairs = np.outer(w, w)[np.triu_indices(6, 1)]
    assert found.cos_matrix.numpy() == pytest.approx(cosines, abs=1e-12)
    assert found.cos_pair == close(pairs @ cosines[np.triu_indices(6, 1)] / pairs.sum())
    numerator = mean @ mean - w**2 @ norms**2
    assert found.cos_pair_nw == close(numerator / ((w @ norms) ** 2 - w**2 @ norms**2))
    assert found.cos_to_mean.numpy() == pytest.approx(x @ mean / norms / np.linalg.norm(mean))
    conflict = np.maximum(0, -(cosines - np.eye(6))).sum(1) / 5
    assert found.conflict.numpy() == pytest.approx(conflict, abs=1e-12)
    assert spread.m2 == close(w @ norms**2)
    assert spread.u2 == close(mean @ mean)
    assert spread.var == close(w @ ((x - mean) ** 2).sum(1))
    assert spread.A_excess == close(spread.A_null - spread.A_ratio)


def test_one_client_has_no_pairs_and_a_zero_update_joins_none() -> None:
    found, spread = measured(np.ones((1, 4)))
    undefined = (found.cos_pair, found.cos_pair_nw, spread.A_ratio, spread.A_null, spread.A_excess, spread.A_rel)
    assert all(math.isnan(value) for value in undefined)
    assert found.n_valid == 1
    assert found.norm_mean == close(2)
    found, _ = measured(np.array([[1.0, 0], [0, 0], [1, 1]]))
    assert found.n_valid == 2
    assert found.cos_pair == close(math.sqrt(0.5))
    assert found.norm_mean == close((1 + math.sqrt(2)) / 3)
    assert found.cos_to_mean.isnan().tolist() == [False, True, False]
    assert math.isnan(measured(np.zeros((3, 4)))[1].A_ratio)


def test_extremes() -> None:
    found, spread = measured(np.array([[1.0, 2], [1, 2], [1, 2]]))
    assert found.cos_pair == close(1)
    assert 0 <= spread.var < 1e-12
    found, spread = measured(np.array([[1.0, 2], [-1, -2]]))
    assert (found.cos_pair, spread.u2, spread.A_ratio) == (close(-1), close(0), close(1))
    assert math.isnan(spread.A_rel)


def test_vectors_are_trainable_parameters_once_each() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    assert [tuple(t.shape) for t in trainable(net)] == [(3, 3), (3,), (3,), (3,)]


def test_mismatches_and_impossible_weights_are_refused() -> None:
    with pytest.raises(DataError, match="names"):
        gram([{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    with pytest.raises(DataError, match="shapes"):
        cross_gram([[torch.ones(2)]], [[torch.ones(3)]])
    for bad in ([0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(ConfigError, match="weights"):
            weights_of("samples", bad, [])
    assert gram([{"a": torch.ones(2), "b": torch.ones(1)}, {"b": torch.ones(1), "a": torch.ones(2)}])[0, 1] == 3


def test_a_half_without_parameters_has_a_zero_gram() -> None:
    assert gram([[], []]).tolist() == [[0, 0], [0, 0]]
