"""Aggregation along each direction: invariants 4 and 15."""

from __future__ import annotations

import pytest
import torch

from benchmarks.holograd import predictions
from benchmarks.holograd.legacy import trimmed_over_directions
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.holograd.robust import MEAN, Robust
from tests.holograd.made import cos, no_basis, normal, sets

EVEN = torch.full((10,), 0.1, dtype=torch.float64)
TRIMMED, MEDIAN = Robust("trimmed_mean", 0.2), Robust("median")


def test_mean_trimmed_mean_and_median() -> None:
    scalars = torch.tensor([[4.0, 1], [1, 1], [2, 9], [3, 1], [90, 1]], dtype=torch.float64)
    shares = torch.tensor([0.5, 0.5, 0, 0, 0], dtype=torch.float64)
    assert MEAN.aggregate(scalars, shares).tolist() == [2.5, 1]
    assert TRIMMED.aggregate(scalars, shares).tolist() == [3, 1]
    assert MEDIAN.aggregate(scalars, shares).tolist() == [3, 1]
    assert MEDIAN.aggregate(scalars[:4], shares[:4]).tolist() == [2.5, 1]


@pytest.mark.parametrize("rule", [TRIMMED, MEDIAN])
def test_order_of_clients_does_not_matter(rule: Robust) -> None:
    scalars = normal(10, 30)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rule.aggregate(scalars[order], EVEN), rule.aggregate(scalars, EVEN))


@pytest.mark.parametrize("rule", [MEAN, TRIMMED, MEDIAN])
def test_identical_clients_are_one_client(rule: Robust) -> None:
    scalars = normal(1, 30).repeat(10, 1)
    torch.testing.assert_close(rule.aggregate(scalars, EVEN), scalars[0])


@pytest.mark.parametrize(("trim", "attackers", "survives"), [(0.1, 1, True), (0.1, 2, False), (0.2, 2, True)])
def test_one_sided_outliers(trim: float, attackers: int, survives: bool) -> None:
    scalars = normal(10, 200)
    scalars[:attackers] = 1e6
    found = Robust("trimmed_mean", trim).aggregate(scalars, EVEN).abs().max()
    assert bool(found < 3) == survives
    assert MEAN.aggregate(scalars, EVEN).abs().max() > 1e4


def test_trimming_nobody_is_the_mean_and_warns() -> None:
    scalars = normal(8, 5)
    with pytest.warns(UserWarning, match=r"trim=0.1 of 8 clients drops none"):
        found = Robust("trimmed_mean", 0.1).aggregate(scalars, EVEN)
    torch.testing.assert_close(found, scalars.mean(0))


def test_a_share_that_is_a_whole_number_of_clients_is_not_lost_to_rounding() -> None:
    scalars = torch.zeros(100, 1, dtype=torch.float64)
    scalars[:29] = 1e6
    assert Robust("trimmed_mean", 0.29).aggregate(scalars, EVEN) == 0


@pytest.mark.parametrize(
    ("key", "options"), [("trim", {"trim": 0.5}), ("trim", {"trim": -0.1}), ("rule", {"rule": "m"})]
)
def test_what_cannot_work_is_refused(key: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"robust.{key}=.* is not allowed"):
        Robust(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Robust("trimmed_mean", float("nan"))


@pytest.mark.parametrize(("trim", "kappa"), [(0.05, 0.623), (0.1, 0.438), (0.15, 0.310), (0.2, 0.215)])
def test_trimming_over_distinct_directions_is_biased(trim: float, kappa: float) -> None:
    """Even though nobody cheats; 1000 directions are near enough to the limit for 8 and 5 per cent."""
    assert predictions.trimming_bias(trim) == pytest.approx(kappa, abs=1e-3)
    size, count = 8000, 1000
    gradient = normal(size)
    along, cosines, plain = [], [], []
    for directions in sets(2, count, no_basis(size)):
        scalars = directions.project(gradient[None])[0]
        estimate = size * directions.combine(trimmed_over_directions(scalars, trim))
        along.append(float(estimate @ gradient / gradient.square().sum()))
        cosines.append(cos(estimate, gradient))
        plain.append(cos(directions.combine(scalars), gradient))
    assert sum(along) / 2 == pytest.approx(kappa, rel=0.08)
    # the cosine factor is that of K << D; here K/D = 1/8 enters both cosines
    expected = predictions.trimming_cosine(trim)
    ratio = count / size
    finite = expected * ((1 + ratio) / (1 + ratio * expected**2)) ** 0.5
    assert sum(cosines) / sum(plain) == pytest.approx(finite, rel=0.05)
