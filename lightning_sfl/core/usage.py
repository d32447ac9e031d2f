"""How often each row has been trained on, in exact counters, and how fresh a client's rows therefore are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def usage_bin(uses: int | np.ndarray) -> np.ndarray:
    """The bin of a use counter: 0, 1, 2-3, 4-7, 8-15, ..., named by its smallest number."""
    counters = np.asarray(uses, dtype=np.int64)
    exponents = np.frexp(np.maximum(counters, 1))[1].astype(np.int64) - 1
    return np.where(counters > 0, np.left_shift(np.int64(1), exponents), 0)


def bins_of(uses: np.ndarray) -> dict[int, int]:
    """Number of rows in each bin that has any, least used first."""
    found, rows = np.unique(usage_bin(uses), return_counts=True)
    return {int(name): int(count) for name, count in zip(found, rows, strict=True)}


def average_uses(name: int) -> float:
    """The mean of the counters that a bin spans: (b + 2b - 1) / 2 from bin 2 on."""
    return float(name) if name <= 1 else (3 * name - 1) / 2


def freshness(need: int, bins: Mapping[int, int], decay: float) -> float:
    """Worth of `need` rows taken from the least used on: a row of average use u counts decay**u."""
    worth = 0.0
    for name in sorted(bins):
        taken = min(need, bins[name])
        worth += taken * decay ** average_uses(name)
        need -= taken
    return worth
