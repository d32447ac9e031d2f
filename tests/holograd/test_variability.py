"""Gradients that have a part in common: invariant 17, the analysis of the first experiment."""

from __future__ import annotations

import pytest
import torch

from benchmarks.holograd import predictions, variability
from tests.holograd.made import normal


def correlated(c: float, count: int, size: int = 20_000) -> torch.Tensor:
    """Gradients of equal expected length with pairwise cosine c."""
    return variability.gram_of(c**0.5 * normal(1, size, seed=1) + (1 - c) ** 0.5 * normal(count, size, seed=2))


@pytest.mark.parametrize("c", [0.07, 0.28, 0.7])
def test_equicorrelated_gradients(c: float) -> None:
    gram = correlated(c, 50)
    assert variability.pairwise_cosine(gram) == pytest.approx(c, rel=0.03)
    assert variability.variance_ratio(gram) == pytest.approx(predictions.variance_ratio(c, 50), rel=0.02)
    assert variability.span_cosine(gram) == pytest.approx(predictions.span_cosine(c, 49), rel=0.03)
    assert variability.mean_cosine(gram) == pytest.approx(predictions.mean_cosine(c, 49), rel=0.02)
    found = variability.average_cosine(gram, 0.8, burn=20)
    assert found == pytest.approx(predictions.average_cosine(c, 0.8), rel=0.04)


def test_the_two_sets_of_published_numbers_belong_to_different_cosines() -> None:
    """Variance ratio .93 and leave-one-out .24 go with c = .07; c = .28 requires .71 and .52."""
    assert predictions.variance_ratio(0.07, 50) == pytest.approx(0.91, abs=0.005)
    assert predictions.span_cosine(0.07, 49) == pytest.approx(0.235, abs=0.005)
    assert predictions.variance_ratio(0.28, 50) == pytest.approx(0.71, abs=0.005)
    assert predictions.span_cosine(0.28, 49) == pytest.approx(0.52, abs=0.005)


def test_identical_and_orthogonal_gradients() -> None:
    same = variability.gram_of(normal(1, 50).repeat(4, 1))
    assert variability.pairwise_cosine(same) == pytest.approx(1)
    assert variability.variance_ratio(same) == pytest.approx(0, abs=1e-12)
    apart = variability.gram_of(torch.eye(4, 9))
    assert variability.pairwise_cosine(apart) == 0
    assert variability.span_cosine(apart) == 0
    assert variability.variance_ratio(apart) == pytest.approx(0.75)
