"""Schedules of epochs and batch sizes in closed form; bandits that find the arm that is worth most."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lightning_sfl.core.effort import Decay, Effort, EpsilonGreedy, Plateau, Stages, UpperConfidence
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Work

BASE = Work(10, 5)


def epochs(effort: Effort, rounds: int, base: Work = BASE) -> list[int]:
    return [effort.work(index, base, 0).local_epochs for index in range(rounds)]


def test_epochs_shrink_in_closed_form() -> None:
    """2.5 becomes 2: halves go to even."""
    assert epochs(Decay(0.5), 5) == [5, 2, 1, 1, 1]
    assert epochs(Decay(0.5, least_epochs=2), 4) == [5, 2, 2, 2]
    assert epochs(Decay(), 40)[::13] == [round(5 * 0.97**index) for index in (0, 13, 26, 39)] == [5, 3, 2, 2]
    assert epochs(Decay(1.0), 3) == [5, 5, 5]
    assert Decay(0.5).work(10**9, BASE, 0) == Work(10, 1)


def test_batches_grow_in_closed_form() -> None:
    sizes = [Decay(1.0, batch_factor=2.0, most_batch=50).work(index, BASE, 0).batch_size for index in range(4)]
    assert sizes == [10, 20, 40, 50]
    assert Decay(1.0, batch_factor=1.5, most_batch=99).work(1, Work(3, 1), 0).batch_size == 4
    assert Decay(1.0, batch_factor=1e300, most_batch=99).work(10**9, BASE, 0).batch_size == 99
    with pytest.raises(ConfigError, match=r"effort.batch_factor=2.0 is not allowed: 1 where batch_size is null"):
        Decay(batch_factor=2.0, most_batch=99).check(Work(None, 1))


def test_stages_hold_from_their_round_on() -> None:
    """One epoch in rounds 0 and 1 and then two; a line from 5 down to 1; batches by themselves."""
    assert epochs(Stages({0: 1, 2: 2}), 4) == [1, 1, 2, 2]
    assert epochs(Stages({4: 1, 3: 2, 2: 3, 1: 4}), 6) == [5, 4, 3, 2, 1, 1]
    sizes = [Stages(batch_sizes={1: 20, 3: 40}).work(index, BASE, 0) for index in range(5)]
    assert sizes == [Work(10, 5), Work(20, 5), Work(20, 5), Work(40, 5), Work(40, 5)]
    assert Stages({0: 2}).work(0, Work(None, 7), 0) == Work(None, 2)


def test_epochs_are_halved_where_the_loss_stays() -> None:
    effort, seen = Plateau(patience=2), []
    for index, loss in enumerate([3.0, 2.0, 2.5, 2.0, 1.9, 1.9, 1.95, 1.8, 9.0, 9.0, 9.0]):
        seen.append(effort.work(index, Work(10, 8), 0).local_epochs)
        effort.learn(index, BASE, loss, 0.0)
    assert seen == [8, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]
    effort.restart()
    assert epochs(effort, 1) == [5]


def played(effort: Any, gains: dict[int, float], rounds: int = 200, noise: float = 0.0) -> Counter[int]:
    """Pulls of each arm when a round of so many epochs gains that much accuracy; the accuracy itself is not bounded."""
    accuracy, pulls, draw = 0.0, Counter(), np.random.default_rng(0)
    for index in range(rounds):
        work = effort.work(index, BASE, 0)
        accuracy += gains[work.local_epochs] + noise * draw.normal()
        effort.learn(index, work, 1.0, accuracy)
        pulls[work.local_epochs] += 1
    return pulls


@pytest.mark.parametrize("made", [EpsilonGreedy, UpperConfidence])
def test_an_arm_that_is_better_throughout_is_pulled_most(made: Any) -> None:
    """Per epoch: 0.01, 0.03, 0.01."""
    pulls = played(made([1, 2, 5]), {1: 0.01, 2: 0.06, 5: 0.05}, noise=0.005)
    assert pulls[2] > 120
    assert min(pulls.values()) >= 1
    one = made([1, 2, 5])
    played(one, {1: 0.01, 2: 0.06, 5: 0.05})
    assert one.state["sums"][1] / one.state["counts"][1] == pytest.approx(0.03)


@pytest.mark.parametrize("made", [EpsilonGreedy, UpperConfidence])
def test_a_single_arm_is_a_fixed_number_of_epochs(made: Any) -> None:
    assert played(made([3]), {3: 0.1}, 20) == {3: 20}


def test_without_width_or_epsilon_it_is_greedy() -> None:
    for effort in (EpsilonGreedy([1, 2], epsilon=0.0), UpperConfidence([1, 2], width=0.0)):
        pulls = played(effort, {1: 0.01, 2: 0.0})
        assert pulls[2] == 1
    assert played(EpsilonGreedy([1, 2], epsilon=1.0), {1: 0.01, 2: 0.0})[2] > 70


@pytest.mark.parametrize("made", [Plateau, EpsilonGreedy, UpperConfidence])
def test_what_was_learned_goes_on(made: Any) -> None:
    one, other = made(), made()
    for index in range(30):
        work = one.work(index, BASE, 0)
        assert index < 12 or other.work(index, BASE, 0) == work
        one.learn(index, work, 1.0 + math.sin(index), 0.5 + 0.4 * math.cos(3 * index))
        other.state = copy.deepcopy(one.state)


@pytest.mark.parametrize(
    ("made", "key", "options"),
    [
        (Decay, "epochs_factor", {"epochs_factor": 1.1}), (Decay, "epochs_factor", {"epochs_factor": 0.0}),
        (Decay, "least_epochs", {"least_epochs": 0}), (Decay, "batch_factor", {"batch_factor": 0.5}),
        (Decay, "most_batch", {"batch_factor": 2.0}), (Decay, "most_batch", {"most_batch": 9}),
        (Stages, "epochs", {}), (Stages, "epochs", {"epochs": {-1: 2}}),
        (Stages, "batch_sizes", {"batch_sizes": {0: 0}}),
        (Plateau, "patience", {"patience": 0}), (Plateau, "least_epochs", {"least_epochs": 0}),
        (EpsilonGreedy, "epsilon", {"epsilon": 2.0}), (EpsilonGreedy, "arms", {"arms": []}),
        (UpperConfidence, "arms", {"arms": [1, 0]}), (UpperConfidence, "arms", {"arms": [2, 2]}),
        (UpperConfidence, "width", {"width": math.inf}),
    ],
)  # fmt: skip
def test_ranges(made: Any, key: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"effort.{key}=.* is not allowed: ") as refusal:
        made(**options)
    assert "\n" not in str(refusal.value)
