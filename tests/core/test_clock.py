"""The simulated clock: rates of the radio cell, costs of a half, and the order of arrivals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sfl.core.clock import ALEXNET, BANDWIDTH_HZ, Cell, Costs, Durations, costs_of, durations, rate_bps
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Work
from lightning_sfl.core.visits import Visits


@pytest.mark.parametrize(("km", "bps"), [(1, 8.30340e6), (0.5, 3.52878e7), (0.1, 1.212881e8)])
def test_rates(km: float, bps: float) -> None:
    assert rate_bps(km) == pytest.approx(bps, rel=2e-5)  # the noise density is rounded there
    assert bps / 10 < rate_bps(km, BANDWIDTH_HZ / 10) < bps


def test_costs_of_the_papers_network() -> None:
    assert (ALEXNET.flops, ALEXNET.row_bits, ALEXNET.model_bits) == (5_603_328, 131_072, 620_544)


def test_costs_of_a_half() -> None:
    half = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    found = costs_of(half, torch.zeros(1, 1, 8, 8))
    assert found == Costs(2 * 9 * 4 * 64, 4 * 64 * 32, (36 + 4) * 32)
    assert half.training


def test_durations_follow_speed_and_distance() -> None:
    cell = Cell(compute_flops=(2e9, 2e9), distance_km=(0.5, 0.5))
    takes = durations(cell, Costs(4e6, 1000, 5000), 0, 3, 7, 10)
    assert takes == Durations(2e-3, 7000 / rate_bps(0.5), 5000 / rate_bps(0.5))
    shared = durations(Cell((2e9, 2e9), (0.5, 0.5), share_bandwidth=True), Costs(4e6, 1000, 5000), 0, 3, 7, 10)
    assert shared.send_batch_s == 7000 / rate_bps(0.5, BANDWIDTH_HZ / 10)


def test_positions_over_the_area_are_farther_out() -> None:
    costs = Costs(1, 1, 1)
    for position, median in (("radius", 0.55), ("area", (0.505) ** 0.5)):
        cell = Cell(position=position)  # type: ignore[arg-type]
        send = [durations(cell, costs, 0, client, 1, 1).send_model_s for client in range(2000)]
        assert np.median(send) == pytest.approx(1 / rate_bps(median), rel=0.06)


@pytest.mark.parametrize(
    ("key", "value"), [("compute_flops", (0.0, 1.0)), ("distance_km", (2.0, 1.0)), ("position", "x")]
)
def test_ranges(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"cell\.{key}="):
        Cell(**{key: value})  # type: ignore[arg-type]


def seated(takes: list[Durations], steps: int, at_random: bool = False) -> Visits:
    visits = Visits(0, Work(1, 1, steps), takes, at_random)
    for slot in range(len(takes)):
        visits.admit(slot, slot, np.arange(3), 1)
    return visits


def test_who_is_ready_first_comes_first() -> None:
    visits = seated([Durations(1, 1, 9), Durations(2, 2, 9)], 100)
    story = []
    for _ in range(8):
        slot, _ = visits.next()
        story.append((slot, visits.clock.ready_s[slot]))
        assert not visits.step(slot)
    assert story == [(0, 2), (1, 4), (0, 5), (0, 8), (1, 10), (0, 11), (0, 14), (1, 16)]


def test_ties_go_to_the_first_slot_and_handing_in_takes_time() -> None:
    visits = seated([Durations(1, 1, 5)] * 3, 2)
    order, over = [], []
    for _ in range(6):
        slot, batch = visits.next()
        order.append((slot, batch.local_step))
        if visits.step(slot):
            over.append((slot, visits.clock.ready_s[slot]))
            visits.leave(slot)
    assert order == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert over == [(0, 11), (1, 11), (2, 11)]
    assert visits.finished_s == 11
    visits.admit(0, 2, np.arange(3), 1)
    assert visits.clock.ready_s[0] == 13


def test_any_order_is_drawn_and_repeats() -> None:
    orders = []
    for _ in range(2):
        visits = seated([Durations(1, 1, 1), Durations(99, 99, 99)], 1000, at_random=True)
        orders.append([])
        for _ in range(60):
            slot, _ = visits.next()
            visits.step(slot)
            orders[-1].append(slot)
    assert orders[0] == orders[1]
    assert 15 < sum(orders[0]) < 45


def test_newcomers_come_from_outside_and_batches_go_on() -> None:
    visits = seated([Durations(1, 1, 1)] * 3, 2)
    first = [batch.tolist() for batch in visits.in_slot[0].batches]
    visits.leave(0)
    assert {visits.newcomer(0, [0, 1, 2])} == {0}
    assert {visits.newcomer(0, [0, 1, 2, 7])} == {7}
    visits.admit(0, 0, np.arange(3), 4)
    second = [batch.tolist() for batch in visits.in_slot[0].batches]
    assert sorted(first + second[:1]) == [[0], [1], [2]]
    again = Visits(0, Work(1, 1, 2), visits.takes, False)
    again.load(visits.state(), [np.arange(3)] * 3)
    assert again.state() == visits.state()
    assert [b.tolist() for b in again.in_slot[0].batches] == second
