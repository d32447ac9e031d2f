"""How much clients train in a round, where rounds are not alike: schedules, and rules that try and see."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from lightning_sfl.core.errors import require
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Work

T = TypeVar("T")


class Effort(ABC):
    """Says before each round how much clients do in it, and may learn from the rounds before.

    What it has learned is in `state`, plain values, and so in checkpoints.
    """

    state: dict[str, Any]

    def restart(self) -> None:
        """Forget an earlier run."""
        self.state = {}

    @abstractmethod
    def work(self, round: int, base: Work, seed: int) -> Work:
        """The work of this round; `base`: with the epochs and the batch size that are configured."""

    def learn(self, round: int, work: Work, loss: float, accuracy: float) -> None:  # noqa: B027
        """Take note of the training loss and accuracy of a round with this work."""

    def check(self, base: Work) -> None:  # noqa: B027
        """Refuse what does not go with the configured work."""


class Decay(Effort):
    """Deep early, thin late: epochs shrink by a factor every round, and batches may grow by one.

    Args:
        epochs_factor: local_epochs times this to the power of the round, rounded (halves to even), is what is trained.
        least_epochs: where that stops.
        batch_factor: the same for batch_size, which grows.
        most_batch: where that stops; needed where it grows.
    """

    def __init__(
        self,
        epochs_factor: float = 0.97,
        least_epochs: int = 1,
        batch_factor: float = 1.0,
        most_batch: int | None = None,
    ) -> None:
        require(0 < epochs_factor <= 1, "effort.epochs_factor", epochs_factor, "a number above 0, at most 1")
        require(least_epochs >= 1, "effort.least_epochs", least_epochs, "an integer >= 1")
        require(1 <= batch_factor < math.inf, "effort.batch_factor", batch_factor, "a finite number >= 1")
        bound = most_batch is None if batch_factor == 1 else most_batch is not None and most_batch >= 1
        allowed = "null, as batches do not grow" if batch_factor == 1 else "an integer >= 1, as batches grow"
        require(bound, "effort.most_batch", most_batch, allowed)
        self.epochs_factor, self.least_epochs = epochs_factor, least_epochs
        self.batch_factor, self.most_batch = batch_factor, most_batch
        self.restart()

    def check(self, base: Work) -> None:
        grows = base.batch_size is None and self.batch_factor > 1
        require(not grows, "effort.batch_factor", self.batch_factor, "1 where batch_size is null, for all rows at once")

    def work(self, round: int, base: Work, seed: int) -> Work:
        epochs = max(self.least_epochs, _rounded(base.local_epochs * self.epochs_factor**round))
        if self.most_batch is None or base.batch_size is None:
            return replace(base, local_epochs=epochs)
        top = self.most_batch
        grown = base.batch_size * self.batch_factor**round if round * math.log(self.batch_factor) < 600 else math.inf
        return replace(base, local_epochs=epochs, batch_size=top if grown >= top else _rounded(grown))


class Stages(Effort):
    """Epochs and batch sizes by the round from which on they hold; before the first of these, as configured.

    Args:
        epochs: `{0: 1, 2: 5}` for one pass over the rows in rounds 0 and 1, and five from round 2 on.
        batch_sizes: the same for rows per local step.
    """

    def __init__(self, epochs: dict[int, int] | None = None, batch_sizes: dict[int, int] | None = None) -> None:
        self.epochs, self.batch_sizes = epochs or {}, batch_sizes or {}
        for key, listed in {"epochs": self.epochs, "batch_sizes": self.batch_sizes}.items():
            good = all(round >= 0 and value >= 1 for round, value in listed.items())
            require(good, f"effort.{key}", listed, "rounds from 0 on and integers >= 1, such as {0: 1, 2: 5}")
        some = bool(self.epochs or self.batch_sizes)
        require(some, "effort.epochs", epochs, "at least one round and its epochs, unless batch_sizes has one")
        self.restart()

    def work(self, round: int, base: Work, seed: int) -> Work:
        epochs = _since(self.epochs, round, base.local_epochs)
        return replace(base, local_epochs=epochs, batch_size=_since(self.batch_sizes, round, base.batch_size))


class Plateau(Effort):
    """Epochs are halved whenever the training loss has not come below its lowest for `patience` rounds.

    Args:
        patience: rounds without a new lowest loss.
        least_epochs: where that stops.
    """

    def __init__(self, patience: int = 5, least_epochs: int = 1) -> None:
        require(patience >= 1, "effort.patience", patience, "an integer >= 1")
        require(least_epochs >= 1, "effort.least_epochs", least_epochs, "an integer >= 1")
        self.patience, self.least_epochs = patience, least_epochs
        self.restart()

    def restart(self) -> None:
        self.state = {"halvings": 0, "waited": 0, "lowest": math.inf}

    def work(self, round: int, base: Work, seed: int) -> Work:
        return replace(base, local_epochs=max(self.least_epochs, base.local_epochs >> self.state["halvings"]))

    def learn(self, round: int, work: Work, loss: float, accuracy: float) -> None:
        waited = 0 if loss < self.state["lowest"] else self.state["waited"] + 1
        stalled = waited >= self.patience
        self.state = {
            "halvings": self.state["halvings"] + stalled,
            "waited": 0 if stalled else waited,
            "lowest": min(loss, self.state["lowest"]),
        }


class _Bandit(Effort):
    """Tries numbers of epochs and keeps to those that bring most training accuracy per epoch.

    The reward of a round is its gain in training accuracy over the round before, divided by its epochs. Arms that have
    not been tried come first, in the order given.
    """

    def __init__(self, arms: Sequence[int]) -> None:
        good = len(arms) > 0 and all(arm >= 1 for arm in arms) and len(set(arms)) == len(arms)
        require(good, "effort.arms", list(arms), "different integers >= 1")
        self.arms = list(arms)
        self.restart()

    def restart(self) -> None:
        self.state = {"counts": [0] * len(self.arms), "sums": [0.0] * len(self.arms), "accuracy": None}

    def work(self, round: int, base: Work, seed: int) -> Work:
        counts = np.array(self.state["counts"])
        new = np.flatnonzero(counts == 0)
        place = int(new[0]) if len(new) else self.choose(np.array(self.state["sums"]) / counts, counts, round, seed)
        return replace(base, local_epochs=self.arms[place])

    @abstractmethod
    def choose(self, means: np.ndarray, counts: np.ndarray, round: int, seed: int) -> int:
        """Place of the arm to pull, by the mean rewards so far."""

    def learn(self, round: int, work: Work, loss: float, accuracy: float) -> None:
        before, place = self.state["accuracy"], self.arms.index(work.local_epochs)
        self.state["accuracy"] = accuracy
        if before is not None:
            self.state["counts"][place] += 1
            self.state["sums"][place] += (accuracy - before) / work.local_epochs


class EpsilonGreedy(_Bandit):
    """Mostly the number of epochs with the best mean gain in training accuracy per epoch, now and then any.

    Args:
        arms: numbers of epochs to choose from.
        epsilon: chance of any of them.
    """

    def __init__(self, arms: Sequence[int] = (1, 2, 5, 10), epsilon: float = 0.1) -> None:
        super().__init__(arms)
        require(0 <= epsilon <= 1, "effort.epsilon", epsilon, "a number from 0 to 1")
        self.epsilon = epsilon

    def choose(self, means: np.ndarray, counts: np.ndarray, round: int, seed: int) -> int:
        draws = stream(seed, "effort", round)
        return int(draws.integers(len(means))) if draws.random() < self.epsilon else int(np.argmax(means))


class UpperConfidence(_Bandit):
    """The number of epochs with the largest mean gain plus what it may be underrated by (UCB1; Auer et al., 2002).

    Args:
        arms: numbers of epochs to choose from.
        width: times sqrt(2 ln(tries) / own tries) is what is added; rewards are gains in accuracy per epoch, so small.
    """

    def __init__(self, arms: Sequence[int] = (1, 2, 5, 10), width: float = 0.02) -> None:
        super().__init__(arms)
        require(0 <= width < math.inf, "effort.width", width, "a finite number >= 0")
        self.width = width

    def choose(self, means: np.ndarray, counts: np.ndarray, round: int, seed: int) -> int:
        return int(np.argmax(means + self.width * np.sqrt(2 * math.log(counts.sum()) / counts)))


def _since(listed: Mapping[int, int], round: int, otherwise: T) -> int | T:
    """What the last round up to this one lists."""
    begun = [each for each in listed if each <= round]
    return listed[max(begun)] if begun else otherwise


def _rounded(value: float) -> int:
    """To the nearest integer, halves to even, at least 1."""
    return max(1, round(value))
