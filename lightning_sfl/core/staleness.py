"""How much a client's weights count that come late: merges may have passed since it got those it started from.

Constant, polynomial and hinge are the functions of C. Xie, O. Koyejo, I. Gupta, "Asynchronous Federated Optimization",
OPT 2020 (arXiv 1903.03934), section 5.2; FedBuff takes the polynomial one with a power of one half.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from lightning_sfl.core.errors import require
from lightning_sfl.core.state import State


class HandedIn(NamedTuple):
    """What the client in a slot has handed in; missed: merges since it got the weights from which it trained."""

    slot: int
    state: State
    weight: float
    missed: int
    client: int


class Staleness(ABC):
    """Makes a factor from 0 to 1 of the number of merges that a client has missed; of none it is 1."""

    @abstractmethod
    def factor(self, missed: int) -> float:
        """What an update counts after so many merges."""


class Constant(Staleness):
    """Late updates count as much as fresh ones."""

    def factor(self, missed: int) -> float:
        return 1.0


class Polynomial(Staleness):
    """(1 + missed) ** -power.

    Args:
        power: 0 for no difference; 0.5, the default, is 1 / sqrt(1 + missed).
    """

    def __init__(self, power: float = 0.5) -> None:
        require(0 <= power < math.inf, "staleness.power", power, "a finite number >= 0")
        self.power = power

    def factor(self, missed: int) -> float:
        return float((1 + missed) ** -self.power)


class Hinge(Staleness):
    """1 as long as no more than `tolerated` merges were missed, then 1 / (slope * (missed - tolerated) + 1).

    Args:
        slope: how fast it falls; 0 for no difference.
        tolerated: missed merges that make no difference.
    """

    def __init__(self, slope: float = 10.0, tolerated: int = 4) -> None:
        require(0 <= slope < math.inf, "staleness.slope", slope, "a finite number >= 0")
        require(tolerated >= 0, "staleness.tolerated", tolerated, "an integer >= 0")
        self.slope, self.tolerated = slope, tolerated

    def factor(self, missed: int) -> float:
        return 1 / (self.slope * max(missed - self.tolerated, 0) + 1)
