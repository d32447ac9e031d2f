"""Who comes and who is done: shares, closing times in closed form, plans that are cut short."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightning_sfl.core.attendance import EVERYBODY, Attendance, Pace, closing_time, cut_short
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Plan, Work, plan_round, plan_sweeps


def test_how_many_are_asked() -> None:
    assert [Attendance(overcommit=1.3).asked(n) for n in (1, 3, 10, 100)] == [2, 4, 13, 130]
    assert Attendance(overcommit=1.1).asked(10) == 11
    assert EVERYBODY.asked(10**400) == 10**400


def test_each_client_comes_as_often_as_it_should() -> None:
    """2000 rounds at 0.7: 1400 on average, with a standard deviation of 20.5; a client's draws are its own."""
    some = Attendance(availability=0.7)
    met = [some.come([3, 5, 9], index, 0) for index in range(2000)]
    for client in (3, 5, 9):
        assert abs(sum(client in clients for clients in met) - 1400) < 5 * 20.5
    assert [5 in clients for clients in met] == [some.come([5], index, 0) == [5] for index in range(2000)]
    assert [some.come([3, 5, 9], index, 1) for index in range(2000)] != met
    assert EVERYBODY.come([4, 1], 0, 0) == [4, 1]


def test_when_a_round_ends() -> None:
    done = [4.0, 1.0, 9.0, 2.0]
    assert closing_time(done, 4, None, 1) == 9
    assert closing_time(done, 2, None, 1) == 2
    assert closing_time(done, 9, None, 1) == 9
    assert closing_time(done, 4, 3.0, 1) == 3
    assert closing_time(done, 4, 0.5, 1) == 1
    assert closing_time(done, 4, 3.0, 3) == 4
    assert closing_time(done, 4, 100.0, 3) == 9
    assert closing_time(done, 2, 3.0, 2) == 2


def test_each_client_has_a_chance_of_its_own() -> None:
    """2000 rounds at 0, 0.2, 0.7 and 1; the deviation is at most 20.5."""
    some = Attendance(availability=[0.0, 0.2, 0.7, 1.0])
    met = [some.come([0, 1, 2, 3], index, 0) for index in range(2000)]
    for client, chance in enumerate((0, 0.2, 0.7, 1)):
        assert abs(sum(client in clients for clients in met) - 2000 * chance) <= (0 if chance in (0, 1) else 5 * 20.5)
    assert [some.chance(client) for client in range(4)] == some.availability
    assert some.common is None
    assert some.said() == ["availability 0.0 to 1.0 by client"]


@pytest.mark.parametrize("chance", [0.3, 0.7, 1.0])
def test_equal_chances_are_one_number(chance: float) -> None:
    listed, single = Attendance(availability=[chance] * 10), Attendance(availability=chance)
    for index in range(50):
        assert listed.come(range(10), index, 3) == single.come(range(10), index, 3)
    assert (listed.common, listed.is_full) == (single.common, single.is_full) == (chance, chance == 1)
    assert not Attendance(availability=[chance] * 10, quorum=2).is_full


@pytest.mark.parametrize(
    ("attendance", "words"),
    [
        (Attendance([0.5] * 3), r"attendance.availability='3 numbers' is not allowed: a number for all, or 4, one for"),
        (Attendance([]), r"attendance.availability='0 numbers' is not allowed: a number for all, or 4, one for each"),
        (
            Attendance([0.0, 0.5, 0.5, 0.5], quorum=3),
            r"attendance.quorum=3 is not allowed: at most 2, .* that ever come",
        ),
        (Attendance([0.0] * 4), r"attendance.quorum=1 is not allowed: at most 0, the clients with data that ever come"),
        (Attendance(0.5, quorum=4), r"attendance.quorum=4 is not allowed: at most 3, the clients with data$"),
    ],
)
def test_what_does_not_fit_the_population(attendance: Attendance, words: str) -> None:
    """Four clients, of which the last has no data."""
    with pytest.raises(ConfigError, match=words) as refusal:
        attendance.check(4, [0, 1, 2])
    assert "\n" not in str(refusal.value)
    Attendance([0.0, 0.5, 0.5, 0.0], quorum=2).check(4, [0, 1, 2])


def planned(sizes: Any = (4, 8, 6), batch: int = 2) -> Plan:
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return plan_round(0, 3, range(10, 10 + len(sizes)), rows, Work(batch, 1), "sorted")


def test_late_clients_keep_the_batches_they_have_finished() -> None:
    """Batches take 1 + 2 * 0.5 = 2 s, sending 1 s: done at 5, 9, 7."""
    plan, paces = planned(), [Pace(1.0, 0.5, 1.0)] * 3
    whole, seconds = cut_short(plan, paces, 3, None, 1)
    assert (whole.participants, whole.late, whole.dropped, seconds) == (plan.participants, (), (), 9)
    assert [len(batches) for batches in whole.batches] == [2, 4, 3]
    cut, seconds = cut_short(plan, paces, 3, 6.5, 1)
    assert (cut.participants, cut.late, cut.finishers, seconds) == ((10, 11, 12), (1, 2), [0], 6.5)
    assert [len(batches) for batches in cut.batches] == [2, 3, 3]
    for slot, batches in enumerate(cut.batches):
        for step, batch in enumerate(batches):
            assert (batch.slot, batch.local_step) == (slot, step)
            assert batch.rows.tolist() == plan.batches[slot][step].rows.tolist()
    first, seconds = cut_short(plan, paces, 2, None, 1)
    assert (first.late, first.finishers, seconds) == ((1,), [0, 2], 7)


def test_who_has_not_finished_a_batch_is_left_out() -> None:
    paces = [Pace(50.0, 0.0, 0.0), Pace(1.0, 0.0, 0.0), Pace(3.0, 0.0, 0.5)]
    cut, seconds = cut_short(planned(), paces, 3, 4.0, 1)
    assert (cut.participants, cut.late, cut.dropped, seconds) == ((11, 12), (1,), (10,), 4)
    assert [[batch.slot for batch in batches] for batches in cut.batches] == [[0] * 4, [1]]


def test_of_equals_the_first_slots_are_taken() -> None:
    cut, _ = cut_short(planned((4, 4, 4)), [Pace(1.0, 0.0, 0.0)] * 3, 2, None, 1)
    assert cut.late == (2,)
    assert len(cut.batches[2]) == 2


def test_sweeps_stay_what_they_were() -> None:
    """A client that sits a sweep out still does when its plan is cut."""
    plan = plan_sweeps(0, [1, 2], [{1: np.arange(3), 2: np.arange(0)}, {2: np.arange(3, 6)}, {1: np.array([7])}])
    cut, _ = cut_short(plan, [Pace(1.0, 0.0, 0.0)] * 2, 2, 1.0, 1)
    assert (cut.participants, cut.late) == ((1, 2), (0,))
    assert [[batch.sweep for batch in batches] for batches in cut.batches] == [[0], [1]]


@pytest.mark.parametrize("seed", range(20))
def test_enough_clients_are_always_done(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 12, 8).tolist()
    paces = [Pace(*draw.uniform(0, 3, 3).tolist()) for _ in sizes]
    for wanted, deadline, quorum in ((8, float(draw.uniform(0.1, 30)), 3), (5, None, 2), (5, 4.0, 5)):
        cut, _ = cut_short(planned(sizes), paces, wanted, deadline, quorum)
        assert quorum <= len(cut.finishers) <= wanted
        assert all(batches for batches in cut.batches)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("availability", 0.0), ("availability", 1.1), ("availability", math.nan), ("overcommit", 0.9),
        ("overcommit", math.inf), ("deadline_s", 0.0), ("quorum", 0),
    ],
)  # fmt: skip
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"attendance.{key}={value!r} is not allowed: ") as refusal:
        Attendance(**{key: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("chance", [-0.1, 1.1, math.nan])
def test_each_chance_is_one(chance: float) -> None:
    with pytest.raises(ConfigError, match=rf"attendance.availability\[1\]={chance!r} is not allowed: from 0 to 1"):
        Attendance(availability=[0.5, chance])
