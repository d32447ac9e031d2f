"""Staleness functions against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.staleness import Constant, Hinge, Polynomial, Staleness

CASES: list[tuple[Staleness, list[float]]] = [
    (Constant(), [1.0, 1.0, 1.0, 1.0]),
    (Polynomial(), [1.0, 2**-0.5, 3**-0.5, 0.5]),
    (Polynomial(0.0), [1.0, 1.0, 1.0, 1.0]),
    (Polynomial(1.0), [1.0, 1 / 2, 1 / 3, 1 / 4]),
    (Hinge(10.0, 1), [1.0, 1.0, 1 / 11, 1 / 21]),
    (Hinge(0.5, 0), [1.0, 1 / 1.5, 1 / 2, 1 / 2.5]),
    (Hinge(0.0, 0), [1.0, 1.0, 1.0, 1.0]),
]


@pytest.mark.parametrize(("function", "wanted"), CASES)
def test_factors(function: Staleness, wanted: list[float]) -> None:
    assert [function.factor(missed) for missed in range(4)] == pytest.approx(wanted, rel=1e-15)


def test_the_hinge_of_the_paper_is_an_eleventh_one_merge_beyond_what_it_tolerates() -> None:
    """Where other codes have a twentieth: 1 / (10 (5 - 4) + 1)."""
    assert [Hinge().factor(missed) for missed in (4, 5, 6)] == [1.0, 1 / 11, 1 / 21]


@pytest.mark.parametrize("function", [Constant(), Polynomial(), Polynomial(3.0), Hinge(), Hinge(0.1, 0)])
def test_nobody_counts_more_for_being_late(function: Staleness) -> None:
    factors = [function.factor(missed) for missed in range(50)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (Polynomial, {"power": -1.0}, "staleness.power=-1.0"),
        (Polynomial, {"power": float("nan")}, "staleness.power=nan"),
        (Hinge, {"slope": float("inf")}, "staleness.slope=inf"),
        (Hinge, {"tolerated": -1}, "staleness.tolerated=-1"),
    ],
)
def test_ranges(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} is not allowed: "):
        make(**options)
