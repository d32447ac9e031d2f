"""Rules that look at every number on its own, in the order of its values: the trimmed mean and the median.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, definitions 1 and 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch

from lightning_sfl.core.aggregation import BufferPolicy
from lightning_sfl.core.aggregators.base import Aggregator
from lightning_sfl.core.errors import require
from lightning_sfl.core.state import State


class _Ranks(Aggregator):
    """The plain mean of what is left of each number's values when the outermost are gone.

    All clients count alike, whatever `weighting` says. Buffers are treated like parameters, unless they are taken from
    the first client; of integers, such as BatchNorm's counters, the largest that is left is taken.
    """

    @abstractmethod
    def num_cut(self, count: int) -> int:
        """How many of `count` values go at either end."""

    @torch.no_grad()
    def merge(
        self,
        states: Sequence[State],
        anchor: State,
        weights: Sequence[float],
        buffers: Collection[str] = (),
        buffer_policy: BufferPolicy = "average",
    ) -> State:
        cut = self.num_cut(len(states))
        merged: State = {}
        for name, first in states[0].items():
            if buffer_policy == "first" and name in buffers:
                merged[name] = first.clone()
                continue
            left = torch.stack([state[name] for state in states]).sort(dim=0).values[cut : len(states) - cut]
            # from the smallest on, so that values which agree come out exactly as they are
            merged[name] = left[0] + (left - left[0]).mean(dim=0) if left.is_floating_point() else left[-1]
        return merged


class TrimmedMean(_Ranks):
    """Of each number, the `num_trimmed` smallest and largest values are left out; the plain mean of the others.

    Args:
        num_trimmed: values that go at either end; more than twice as many clients must take part. With 0 it is the
            plain mean.
    """

    def __init__(self, num_trimmed: int = 1) -> None:
        require(num_trimmed >= 0, "aggregator.num_trimmed", num_trimmed, "an integer >= 0")
        self.num_trimmed = num_trimmed

    @property
    def least(self) -> int:
        return 2 * self.num_trimmed + 1

    def num_cut(self, count: int) -> int:
        return self.num_trimmed


class Median(_Ranks):
    """Of each number, the middle value; of an even number of clients, the mean of the two in the middle."""

    def num_cut(self, count: int) -> int:
        return (count - 1) // 2
