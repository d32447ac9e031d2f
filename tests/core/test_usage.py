"""Bins of exact use counters, and what they make of a client's rows."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sfl.core.usage import average_uses, bins_of, freshness, usage_bin


def test_bins() -> None:
    assert usage_bin(np.arange(9)).tolist() == [0, 1, 2, 2, 4, 4, 4, 4, 8]
    powers = 2 ** np.arange(1, 40)
    assert usage_bin(powers).tolist() == powers.tolist()
    assert usage_bin(powers - 1)[1:].tolist() == (powers[1:] // 2).tolist()
    assert bins_of(np.array([5, 0, 1, 3, 2, 0])) == {0: 2, 1: 1, 2: 2, 4: 1}


def test_average_of_a_bin_is_the_mean_of_its_counters() -> None:
    counters = np.arange(64)
    for name in (0, 1, 2, 4, 8, 16, 32):
        assert average_uses(name) == counters[usage_bin(counters) == name].mean()


def test_freshness() -> None:
    assert freshness(8, {0: 3, 1: 4, 2: 5}, 0.5) == pytest.approx(5.1767767, abs=1e-7)
    assert freshness(8, {2: 5, 1: 4, 0: 3}, 0.5) == pytest.approx(5.1767767, abs=1e-7)
    assert freshness(20, {0: 3}, 0.5) == 3
    assert freshness(0, {0: 3}, 0.5) == 0
    assert freshness(5, {1: 5}, 1.0) == 5
    assert freshness(5, {0: 2, 1: 5}, 0.0) == 2
