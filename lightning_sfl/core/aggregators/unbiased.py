"""Unbiased weights: what takes part stands for what does not."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lightning_sfl.core.aggregation import BufferPolicy, weighted_average
from lightning_sfl.core.aggregators.base import Aggregator, stretched
from lightning_sfl.core.state import State


class Unbiased(Aggregator):
    """Each update counts K n_k / (n m): of K clients with n rows together m take part, this one with n_k rows.

    Over draws in which all clients are equally likely this is, in the mean, the average over all clients. The weighted
    average of those that take part is not: clients with few rows count more where they meet one another. The price is
    a step that is the longer, the more rows take part. With all clients, or rows alike, it is the weighted average.
    """

    needs_even_draws = True

    def tell_rows(self, rows: Sequence[int]) -> None:
        self.mean_rows = math.fsum(rows) / len(rows)

    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        mean = weighted_average(states, weights, buffers, buffer_policy)
        return stretched(mean, anchor, math.fsum(weights) / len(states) / self.mean_rows, buffers)
