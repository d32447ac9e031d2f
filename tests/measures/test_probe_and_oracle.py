"""Alignment with a probe and distance from an oracle, against explicit vectors and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sfl.measures.gram import gram
from lightning_sfl.measures.oracle import differences_from, differences_from_own, oracle_distance
from lightning_sfl.measures.probe import cosine, distance_of, probe_alignment


def vectors(seed: int, count: int, size: int = 7) -> list[Tensor]:
    return list(torch.from_numpy(np.random.default_rng(seed).normal(size=(count, size))))


def shares(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64) / sum(values)


def angle(one: Tensor, other: Tensor) -> float:
    return float(one @ other / one.norm() / other.norm())


def rows_of(*vectors: Tensor) -> list[list[Tensor]]:
    return [[vector] for vector in vectors]


@pytest.mark.parametrize("seed", range(5))
def test_against_explicit_vectors(seed: int) -> None:
    *updates, probe = vectors(seed, 7)
    weights = shares(1, 2, 3, 4, 5, 6)
    found = probe_alignment(gram(rows_of(*updates, probe)), weights)
    mean = sum(w * update for w, update in zip(weights, updates, strict=True))
    assert pytest.approx(1 - angle(mean, probe)) == found.B
    assert found.cosines.tolist() == pytest.approx([angle(update, probe) for update in updates])
    assert pytest.approx(sum(w * (1 - angle(u, probe)) for w, u in zip(weights, updates, strict=True))) == found.C
    scaled = probe_alignment(gram(rows_of(*(3 * update for update in updates), probe / 7)), weights)
    assert (pytest.approx(found.B), pytest.approx(found.C)) == (scaled.B, scaled.C)
    turned = probe_alignment(gram(rows_of(*(-update for update in updates), probe)), weights)
    assert (pytest.approx(2 - found.B), pytest.approx(2 - found.C)) == (turned.B, turned.C)


def test_updates_that_cancel_or_vanish_have_no_direction() -> None:
    one, probe = vectors(0, 2)
    found = probe_alignment(gram(rows_of(one, -one, probe)), shares(1, 1))
    assert math.isnan(found.B)
    assert pytest.approx(1.0) == found.C
    still = probe_alignment(gram(rows_of(one, 0 * one, probe)), shares(1, 3))
    assert math.isnan(float(still.cosines[1]))
    assert pytest.approx(1 - angle(one, probe)) == still.C
    assert pytest.approx(1 - angle(one, probe)) == still.B
    none = probe_alignment(gram(rows_of(0 * one, probe)), shares(1))
    assert math.isnan(none.B)
    assert math.isnan(none.C)
    assert math.isnan(cosine(0.0, 1.0, 0.0))
    assert math.isnan(distance_of(torch.tensor([float("nan")]), shares(1)))


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_bias_and_spread(seed: int) -> None:
    *gradients, oracle = vectors(seed, 6)
    weights = shares(5, 1, 1, 2, 4)
    found = oracle_distance(gram(differences_from(gradients, oracle)), weights)
    mean = sum(w * gradient for w, gradient in zip(weights, gradients, strict=True))
    square = [float((gradient - oracle).square().sum()) for gradient in gradients]
    assert found.per_client.tolist() == pytest.approx(square)
    assert pytest.approx(float(weights @ torch.tensor(square).double())) == found.G
    assert pytest.approx(found.bias + found.spread) == found.G
    assert found.bias == pytest.approx(float((mean - oracle).square().sum()))
    apart = [float((gradient - mean).square().sum()) for gradient in gradients]
    assert found.spread == pytest.approx(float(weights @ torch.tensor(apart).double()))
    assert found.G_rel == pytest.approx(found.G / float(oracle.square().sum()))
    assert found.D_cos == pytest.approx(1 - angle(mean, oracle))


@pytest.mark.parametrize("seed", range(5))
def test_distance_from_oracles_of_ones_own(seed: int) -> None:
    drawn, weights = vectors(seed, 8), shares(5, 1, 1, 2)
    gradients, oracles = drawn[:4], drawn[4:]
    found = oracle_distance(*_own(gradients, oracles, weights))
    apart = [gradient - oracle for gradient, oracle in zip(gradients, oracles, strict=True)]
    mean = [sum(w * each for w, each in zip(weights, kind, strict=True)) for kind in (gradients, oracles, apart)]
    square = [float(each.square().sum()) for each in apart]
    assert found.per_client.tolist() == pytest.approx(square)
    assert pytest.approx(float(weights @ torch.tensor(square).double())) == found.G
    assert found.bias == pytest.approx(float(mean[2].square().sum()))
    assert found.spread == pytest.approx(found.G - found.bias)
    lengths = torch.tensor([float(oracle.square().sum()) for oracle in oracles]).double()
    assert found.G_rel == pytest.approx(found.G / float(weights @ lengths))
    assert found.D_cos == pytest.approx(1 - angle(mean[0], mean[1]))
    same = oracle_distance(*_own(gradients, oracles[:1] * 4, weights))
    one = oracle_distance(gram(differences_from(gradients, oracles[0])), weights)
    for name in ("G", "G_rel", "D_cos", "bias", "spread"):
        assert getattr(same, name) == pytest.approx(getattr(one, name))


def _own(gradients: list[Tensor], oracles: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor, float]:
    found, square = differences_from_own(gradients, oracles, weights)
    return gram(found), weights, square


def test_the_mean_itself_has_no_bias_and_one_gradient_no_spread() -> None:
    one, other, _ = vectors(1, 3)
    found = oracle_distance(gram(differences_from([one, other], (one + 3 * other) / 4)), shares(1, 3))
    assert found.bias == pytest.approx(0, abs=1e-25)
    assert found.D_cos == pytest.approx(0, abs=1e-12)
    assert pytest.approx(3 / 16 * float((one - other).square().sum())) == found.G
    alone = oracle_distance(gram(differences_from([one], other)), shares(1))
    assert pytest.approx(alone.bias) == alone.G
    assert math.isnan(alone.spread)
    lost = oracle_distance(gram(differences_from([one], 0 * one)), shares(1))
    assert math.isnan(lost.G_rel)
    assert math.isnan(lost.D_cos)


def test_small_differences_of_large_single_precision_gradients_survive() -> None:
    oracle = torch.full((1000,), 100.0)
    gradient = oracle.clone()
    gradient[0] += 2**-10
    found = oracle_distance(gram(differences_from([gradient], oracle)), shares(1))
    assert found.G == 2**-20
