"""Oort and power of choice: closed forms, shares, memory, and the settings at which they choose like Uniform."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.oort import Oort, drawn_by
from lightning_sfl.core.population import Population
from lightning_sfl.core.power_of_choice import PowerOfChoice
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.reports import LossLedger, Report
from lightning_sfl.core.selection import Selector, Uniform

EVERYBODY = np.arange(20)


def ready(selector: Any, count: int = 20, rows: Any = 10, seconds: Any = None, participants: int = 5) -> Any:
    sizes = [rows] * count if isinstance(rows, int) else [*rows]
    count, ends = len(sizes), np.cumsum(sizes)
    owned = tuple(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    people = Population(torch.zeros(ends[-1], 1), torch.zeros(ends[-1], dtype=torch.int64), owned)
    selector.tell_work(sizes, [1.0] * count if seconds is None else seconds)
    selector.prepare(people, 1, participants, None)
    return selector


def shown(losses: dict[int, float], rows: int = 10) -> dict[int, Report]:
    return {client: Report(rows, loss, loss) for client, loss in losses.items()}


# --- Oort -------------------------------------------------------------------------------------------------------------


def test_exploration_decays_to_its_least() -> None:
    shares = [Oort().exploring(index) for index in range(100)]
    assert shares[:2] == pytest.approx([0.882, 0.86436])
    assert shares[-1] == 0.3
    assert Oort(exploration=0.2, least_exploration=0.0).exploring(0) == pytest.approx(0.196)


def test_score_in_closed_form() -> None:
    """Round 10, last seen in round 5: a bonus of sqrt(0.1 ln 10 / 5) = 0.214597; utility scaled from 0.999 x lowest."""
    selector = ready(Oort(clip=1.0))
    selector.learn(4, shown({0: 1.0, 1: 2.0}))
    bonus = math.sqrt(0.1 * math.log(10) / 5)
    assert bonus == pytest.approx(0.214597, abs=1e-6)
    found = selector.scores(9, np.array([0, 1]), math.inf)
    assert found == pytest.approx([0.01 / (20 - 9.99) + bonus, 1 + bonus])


def test_the_utility_is_that_of_all_rows_but_no_row_counts_twice() -> None:
    selector = ready(Oort())
    selector.learn(0, {3: Report(40, 1.0, 2.0), 4: Report(4, 1.0, 2.0)})
    assert selector.utility[[3, 4]].tolist() == [20, 8]
    ledger = LossLedger()
    ledger.add([7, 8], [2, 1], torch.tensor([3.0, 4.0, 9.0]))
    ledger.add([7], [1], torch.tensor([5.0]))
    assert ledger.reports([7, 7, 8, 9]) == {7: Report(3, 4.0, math.sqrt(50 / 3)), 8: Report(1, 9.0, 9.0)}


def test_outliers_count_no_more_than_the_quantile() -> None:
    selector = ready(Oort(clip=0.9))
    selector.learn(0, shown({client: 1.0 + client for client in range(9)} | {9: 1e6}))
    found = selector.scores(0, np.arange(10), math.inf)
    assert found[9] == pytest.approx(1)
    selector.learn(0, shown({10: 1.0}))
    found = selector.scores(0, np.arange(11), math.inf)
    assert found[9] == pytest.approx(found[8], rel=1e-6)


def test_the_usual_quantile_and_the_range_up_to_the_outlier_itself() -> None:
    """Utilities 10 to 190 and 1000; 0.9 of 20 is place 18, so 190, scaled by the range up to the 1000 that is cut."""
    selector = ready(Oort())
    selector.learn(0, shown({client: 1.0 + client for client in range(19)} | {19: 100.0}))
    found = selector.scores(0, EVERYBODY, math.inf)
    assert found[[17, 18, 19]] == pytest.approx(np.array([180, 190, 190]) / (1000 - 9.99) - 9.99 / (1000 - 9.99))


def test_a_client_that_takes_twice_the_time_has_a_quarter_of_its_score() -> None:
    seconds = [1.0] * 10 + [2.0] * 10
    selector = ready(Oort(fast_percent=50), seconds=seconds)
    selector.learn(0, shown(dict.fromkeys(range(20), 1.0)))
    assert selector._limit(EVERYBODY) == 2
    selector = ready(Oort(fast_percent=45), seconds=seconds)
    selector.learn(0, shown(dict.fromkeys(range(20), 1.0)))
    found = selector.scores(1, EVERYBODY, selector._limit(EVERYBODY))
    assert found[10:] == pytest.approx(found[:10] / 4)
    assert selector.scores(1, EVERYBODY, math.inf)[10:] == pytest.approx(found[:10])
    free = ready(Oort(fast_percent=100), seconds=seconds)
    assert free._limit(EVERYBODY) == math.inf


def test_all_new_clients_are_explored_and_nobody_is_chosen_twice() -> None:
    selector = ready(Oort())
    for index in range(60):
        chosen = selector.select(index, EVERYBODY, 5, seed=0)
        assert len(set(chosen)) == 5
        assert set(chosen) <= set(EVERYBODY.tolist())
        assert all(type(client) is int for client in chosen)
        assert chosen == selector.select(index, EVERYBODY, 5, seed=0)
        assert index > 0 or selector.exploited == []
        assert index < 40 or len(selector.exploited) == 5
        selector.learn(index, shown({client: 1.0 + client for client in chosen}))
    assert bool((selector.last > 0).all())
    assert sorted(ready(Oort()).select(0, EVERYBODY[:3], 5, 0)) == [0, 1, 2]
    assert ready(Oort()).select(1, EVERYBODY, 5, 0) != ready(Oort()).select(1, EVERYBODY, 5, 1)


def test_shares_of_new_and_known_clients() -> None:
    """Round 30 explores 0.9 * 0.98^31 = 0.481 of 10, so 4."""
    selector = ready(Oort())
    selector.learn(0, shown(dict.fromkeys(range(12), 1.0)))
    chosen = selector.select(30, EVERYBODY, 10, seed=0)
    assert len(selector.exploited) == 6
    assert set(selector.exploited) <= set(range(12))
    assert len([client for client in chosen if client >= 12]) == 4


def test_new_clients_are_drawn_by_their_rows_and_slow_ones_less() -> None:
    """Rows 10, 20, 50, 40, the last taking twice the time: shares 1, 2, 5 and 4 / 2^2 of 9."""
    selector, firsts = ready(Oort(), rows=[10, 20, 50, 40], seconds=[1.0, 1.0, 1.0, 2.0]), Counter()
    for seed in range(4000):
        firsts[selector.select(0, np.arange(4), 1, seed)[0]] += 1
    for client, share in enumerate((1 / 9, 2 / 9, 5 / 9, 1 / 9)):
        assert abs(firsts[client] - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))


@pytest.mark.parametrize("explore", [1, 2])
def test_new_clients_come_from_a_window_of_five_times_as_many(explore: int) -> None:
    """50 new clients of 1 to 50 rows: the largest five, or ten, and each of them now and then."""
    selector = ready(Oort(), rows=range(1, 51))
    met = Counter(c for seed in range(300) for c in selector.select(0, np.arange(50), explore, seed))
    assert {*met} == {*range(50 - 5 * explore, 50)}


@pytest.mark.parametrize("exploit", [1, 2])
def test_the_best_are_held_until_there_are_more_than_ten_times_as_many(exploit: int) -> None:
    """40 known clients that are alike, so that the share of the last score leaves nobody out: 11 of them, or 21."""
    selector = ready(Oort(), count=40)
    selector.learn(0, shown(dict.fromkeys(range(40), 1.0)))
    met = Counter(c for seed in range(400) for c in selector.select(1, np.arange(40), exploit, seed))
    assert len(selector.exploited) == exploit
    assert {*met} == {*range(10 * exploit + 1)}


def test_large_losses_are_preferred_and_equal_ones_are_not() -> None:
    """400 choices of 5 among 20 clients that were all seen: 100 each on average, with a standard deviation below 9."""
    equal, unequal = ready(Oort()), ready(Oort())
    equal.learn(0, shown(dict.fromkeys(range(20), 1.0)))
    unequal.learn(0, shown({client: 1.0 + client for client in range(20)}))
    counts = [Counter(c for s in range(400) for c in one.select(1, EVERYBODY, 5, s)) for one in (equal, unequal)]
    assert all(abs(counts[0][client] - 100) < 5 * 9 for client in range(20))
    assert min(counts[1][client] for client in range(15, 20)) > 150
    assert max(counts[1][client] for client in range(12)) == 0


def test_the_pacer_gives_slow_clients_more_room_where_utilities_stall() -> None:
    flat, rising = ready(Oort()), ready(Oort())
    for index in range(61):
        for selector, loss in ((flat, 1.0), (rising, 1.0 if index < 40 else 50.0)):
            selector.select(index, EVERYBODY, 5, 0)
            selector.exploited = [0]
            selector.learn(index, shown({0: loss}))
        assert float(flat.percent) == 30 + 5 * (index >= 39) + 5 * (index >= 59)
        assert float(rising.percent) == 30 + 5 * (index >= 39) - 5 * (index >= 59)


def test_the_pacer_stops_at_all_clients_and_at_the_fastest_twentieth() -> None:
    """From 93 in steps of 5 to 98 and 100, where nobody is slow; from 12, where utilities leap, to 7 and 5."""
    flat, leaping = ready(Oort(fast_percent=93)), ready(Oort(fast_percent=12))
    found = []
    for index in range(100):
        for selector, loss in ((flat, 1.0), (leaping, 7.0 ** (index // 20))):
            selector.exploited = [0]
            selector.learn(index, shown({0: loss}))
        found += [(float(flat.percent), float(leaping.percent))] if index % 20 == 19 else []
    assert found == [(93, 12), (98, 7), (100, 5), (100, 5), (100, 5)]
    assert flat._limit(EVERYBODY) == math.inf
    assert leaping._limit(EVERYBODY) == 1


def test_the_pacer_goes_by_exploited_clients_that_were_done() -> None:
    """Utilities 10 and 50 of those that were done; the late one has their mean, 30, and no say."""
    selector = ready(Oort())
    selector.exploited = [0, 1]
    selector.learn(0, shown({0: 1.0, 2: 5.0}) | {1: Report(10, 3.0, 3.0, late=True)})
    assert selector.utility[:3].tolist() == [10, 30, 50]
    assert selector.history.tolist() == [10]
    selector.exploited = [1]
    selector.learn(1, shown({0: 1.0, 2: 5.0}) | {1: Report(10, 3.0, 3.0, late=True)})
    assert selector.history.tolist() == [10, 0]


# --- Oort: who is left out --------------------------------------------------------------------------------------------


def taken_part(selector: Oort, times: dict[int, int]) -> None:
    """Each of these clients has taken part so often."""
    for index in range(max(times.values())):
        selector.learn(index, shown({client: 1.0 for client, often in times.items() if often > index}))


def test_clients_of_few_rows_are_never_chosen() -> None:
    """Rows 1 to 20, of which 8 clients have 13 or more; who has just so many is chosen as well."""
    selector, met = ready(Oort(min_rows=13), rows=range(1, 21)), set()
    for index in range(60):
        chosen = selector.select(index, EVERYBODY, 5, seed=0)
        assert len(set(chosen)) == 5
        selector.learn(index, shown({client: 1.0 + client for client in chosen}))
        met |= {*chosen}
    assert met == {*range(12, 20)}
    assert sorted(selector.select(60, np.arange(9, 15), 5, 0)) == [12, 13, 14]
    assert selector.select(60, np.arange(12), 5, 0) == selector.exploited == []


def test_a_round_asks_no_more_clients_than_have_rows_enough() -> None:
    for participants, most in ((1, 9), (3, 7), (8, 2), (20, 2)):
        ready(Oort(min_rows=most), rows=[0, *range(2, 10)], participants=participants)
        words = (
            f"selection.min_rows={most + 1} is not allowed: at most {most}, which leaves the {min(participants, 8)} "
        )
        with pytest.raises(ConfigError, match=words) as refusal:
            ready(Oort(min_rows=most + 1), rows=[0, *range(2, 10)], participants=participants)
        assert "\n" not in str(refusal.value)


def test_the_blacklist_in_closed_form() -> None:
    """Ten clients that have taken part 0 to 9 times; 30% of them are three."""
    times = {client: client for client in range(10)}
    for limit, wanted in ((None, []), (9, []), (7, [9, 8]), (4, [9, 8, 7]), (0, [9, 8, 7])):
        selector = ready(Oort(blacklist_after=limit), count=10)
        taken_part(selector, times)
        assert selector.blacklist() == wanted
    few = ready(Oort(blacklist_after=0, min_rows=4), rows=range(10), participants=2)  # six clients have rows enough
    taken_part(few, dict.fromkeys(range(4, 10), 1))
    assert few.blacklist() == [4]


def test_who_is_on_the_blacklist_is_chosen_only_where_others_are_missing() -> None:
    selector = ready(Oort(blacklist_after=4), count=10)
    taken_part(selector, {client: client for client in range(10)})
    everybody = np.arange(10)
    for participants, kept in ((5, 7), (7, 7), (8, 8), (10, 10), (12, 10)):
        met = Counter(c for seed in range(50) for c in selector.select(20, everybody, participants, seed))
        assert {*met} == {*range(kept)}
        assert sum(met.values()) == 50 * min(participants, 10)
    assert sorted(selector.select(20, np.array([7, 8, 9]), 2, 0)) == [7, 8]


def test_late_clients_have_taken_part_too() -> None:
    selector = ready(Oort(blacklist_after=0))
    selector.learn(0, shown({3: 1.0}) | {5: Report(10, 1.0, 1.0, late=True)})
    assert selector.picks.nonzero().flatten().tolist() == [3, 5]


def test_without_a_blacklist_nobody_counts() -> None:
    """So that checkpoints are those of before."""
    assert "picks" not in Oort().state_dict()


# --- draws ------------------------------------------------------------------------------------------------------------


def test_weighted_draws_have_their_shares() -> None:
    """4000 first draws with scores 1, 2, 5; and 0 comes last."""
    firsts, clients = Counter(), np.array([4, 5, 6, 7])
    for seed in range(4000):
        drawn = drawn_by(stream(seed, "test"), clients, np.array([1.0, 2.0, 5.0, 0.0]), 4)
        assert sorted(drawn) == clients.tolist()
        assert drawn[3] == 7
        firsts[drawn[0]] += 1
    for client, share in ((4, 1 / 8), (5, 2 / 8), (6, 5 / 8)):
        assert abs(firsts[client] - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))
    assert {tuple(drawn_by(stream(seed, "test"), clients, np.zeros(4), 1)) for seed in range(50)} == {
        (4,),
        (5,),
        (6,),
        (7,),
    }


# --- power of choice --------------------------------------------------------------------------------------------------


def test_without_a_choice_it_is_uniform() -> None:
    selector = ready(PowerOfChoice(5))
    selector.learn(0, shown({client: float(client) for client in range(20)}))
    for index in range(30):
        assert selector.select(index, EVERYBODY, 5, 0) == Uniform().select(index, EVERYBODY, 5, 0)


def test_with_all_as_candidates_it_is_greedy() -> None:
    selector = ready(PowerOfChoice(20))
    selector.learn(0, shown({client: float(client) for client in range(20)}))
    assert sorted(selector.select(3, EVERYBODY, 4, 0)) == [16, 17, 18, 19]
    selector.learn(1, shown({2: 99.0, 19: 0.1}))
    assert sorted(selector.select(3, EVERYBODY, 4, 0)) == [2, 16, 17, 18]
    assert sorted(selector.select(3, EVERYBODY[:6], 2, 0)) == [2, 5]


def test_who_has_not_taken_part_comes_first() -> None:
    selector = ready(PowerOfChoice(20))
    selector.learn(0, shown(dict.fromkeys(range(17), 1000000000.0)))
    assert {17, 18, 19} <= {*selector.select(1, EVERYBODY, 5, 0)}


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [Oort, partial(Oort, blacklist_after=3), PowerOfChoice])
def test_memory_goes_through_a_state_dict(made: Callable[[], Selector]) -> None:
    one, other = ready(made()), ready(made())
    for index in range(45):
        chosen = one.select(index, EVERYBODY, 5, 0)
        one.learn(index, shown({client: 1.0 + (client * index) % 7 for client in chosen}))
    assert any(one.select(i, EVERYBODY, 5, 0) != other.select(i, EVERYBODY, 5, 0) for i in range(45, 50))
    other.load_state_dict(one.state_dict())
    assert all(one.select(i, EVERYBODY, 5, 0) == other.select(i, EVERYBODY, 5, 0) for i in range(45, 50))


@pytest.mark.parametrize(
    ("made", "key", "value"),
    [
        (Oort, "exploration", 1.5), (Oort, "least_exploration", -0.1), (Oort, "speed_penalty", -1.0),
        (Oort, "fast_percent", 0.0), (Oort, "cut_off", math.nan), (Oort, "clip", 2.0), (PowerOfChoice, "candidates", 0),
        (Oort, "min_rows", 0), (Oort, "blacklist_after", -1),
    ],
)  # fmt: skip
def test_ranges(made: type[Selector], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"selection.{key}={value!r} is not allowed: ") as refusal:
        made(**{key: value})
    assert "\n" not in str(refusal.value)


def test_fewer_candidates_than_participants_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection.candidates=3 is not allowed: an integer >= participants=5"):
        ready(PowerOfChoice(3))
