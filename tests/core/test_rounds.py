"""Plans: every row once per pass, ragged last batches, steps that wrap around, and a feed that hands out just these."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import (
    Batch,
    Feed,
    Plan,
    Work,
    draw_batches,
    draw_pass,
    in_order,
    plan_round,
    plan_sweeps,
    proportional_sizes,
    schedule_fingerprint,
)

DRAW = np.random.default_rng(0)
CASES = [tuple(int(v) for v in DRAW.integers(1, 20, 3)) for _ in range(40)]


def plan_of(sizes: tuple[int, ...], work: Work, order: str = "sorted", index: int = 0) -> tuple[Plan, Population]:
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    x = torch.arange(int(ends[-1]), dtype=torch.float32)[:, None]
    population = Population(x, x[:, 0].long() % 3, tuple(rows))
    return plan_round(0, index, range(len(sizes)), rows, work, order), population  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_rows", "batch_size", "epochs"), CASES)
def test_every_pass_visits_every_row_once(num_rows: int, batch_size: int, epochs: int) -> None:
    rows = np.arange(100, 100 + num_rows)
    batches = draw_batches(0, 2, 5, rows, Work(batch_size, epochs))
    per_pass = -(-num_rows // min(batch_size, num_rows))
    assert len(batches) == epochs * per_pass
    for start in range(0, len(batches), per_pass):
        chosen = batches[start : start + per_pass]
        assert sorted(np.concatenate(chosen)) == rows.tolist()
        assert all(len(batch) == min(batch_size, num_rows) for batch in chosen[:-1])
        assert len(chosen[-1]) == (num_rows - 1) % min(batch_size, num_rows) + 1


def test_local_steps_wrap_around_into_fresh_passes() -> None:
    rows = np.arange(5)
    batches = draw_batches(0, 0, 0, rows, Work(2, 1, local_steps=7))
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1, 2]
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:6])) == [0, 1, 2, 3, 4]
    assert np.concatenate(batches[:3]).tolist() != np.concatenate(batches[3:6]).tolist()
    assert len(draw_batches(0, 0, 0, rows, Work(2, 9, local_steps=1))) == 1


def test_the_draw_follows_from_seed_round_and_client_alone() -> None:
    rows, work = np.arange(30), Work(None, 1)
    drawn = {key: draw_batches(*key, rows, work)[0].tolist() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len({tuple(order) for order in drawn.values()}) == 4
    assert draw_batches(0, 0, 0, rows, work)[0].tolist() == drawn[0, 0, 0]


def test_company_does_not_change_a_clients_batches() -> None:
    alone = plan_round(0, 3, [4], [np.arange(9)], Work(2, 2), "sorted").batches[0]
    among = plan_round(0, 3, [7, 4, 1], [np.arange(3), np.arange(9), np.arange(5)], Work(2, 2), "selected").batches[1]
    assert [batch.rows.tolist() for batch in alone] == [batch.rows.tolist() for batch in among]
    assert [(batch.slot, batch.client_id, batch.local_step) for batch in among] == [(1, 4, step) for step in range(10)]


def test_interleaved_sweeps_lose_the_clients_that_are_done() -> None:
    plan, _ = plan_of((5, 4, 9), Work(4, 2))
    sweeps = [[batch.slot for batch in group] for group in plan.interleaved()]
    assert sweeps == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [2], [2]]
    assert all(batch.local_step == t for t, group in enumerate(plan.interleaved()) for batch in group)


def test_sequential_turns_go_client_after_client() -> None:
    plan, _ = plan_of((5, 4, 9), Work(4, 1))
    assert [[(b.slot, b.local_step) for b in group] for group in plan.sequential()] == [
        [(0, 0)], [(0, 1)], [(1, 0)], [(2, 0)], [(2, 1)], [(2, 2)],
    ]  # fmt: skip
    assert plan.num_rows == [5, 4, 9]


def test_both_orders_hold_the_same_batches() -> None:
    plan, _ = plan_of((3, 8, 1, 6), Work(2, 3))
    orders = (plan.interleaved(), plan.sequential())
    one, other = ([(b.slot, b.local_step) for group in groups for b in group] for groups in orders)
    assert sorted(one) == sorted(other) == [(b.slot, b.local_step) for batches in plan.batches for b in batches]
    assert list(Plan(0, (), ()).interleaved()) == []


def test_client_orders() -> None:
    selected = [8, 3, 5, 1, 9, 0]
    assert in_order(selected, "sorted", 0, 0) == [0, 1, 3, 5, 8, 9]
    assert in_order(selected, "selected", 0, 0) == selected
    shuffled = [in_order(selected, "shuffled", 0, index) for index in range(5)]
    assert all(sorted(order) == [0, 1, 3, 5, 8, 9] for order in shuffled)
    assert len({tuple(order) for order in shuffled}) > 1
    assert in_order(selected[::-1], "shuffled", 0, 0) == shuffled[0]


@pytest.mark.parametrize("ahead_rows", [1, 5, 4096])
@pytest.mark.parametrize("groups", ["interleaved", "sequential"])
def test_the_feed_hands_out_exactly_the_rows(ahead_rows: int, groups: str) -> None:
    plan, population = plan_of((5, 4, 9, 1), Work(4, 3))
    feed = Feed(population, plan, ahead_rows)
    for group in getattr(plan, groups)():
        for batch in group:
            x, y = feed.take(batch)
            assert x[:, 0].tolist() == batch.rows.tolist()
            assert y.tolist() == (batch.rows % 3).tolist()


def test_the_feed_gathers_in_few_strokes() -> None:
    plan, population = plan_of((9,), Work(2, 4))
    strokes: list[int] = []

    class Counting(Population):
        def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            strokes.append(len(rows))
            return super().take(rows)

    feed = Feed(Counting(population.x, population.y, population.rows), plan, ahead_rows=12)
    for batch in plan.batches[0]:
        feed.take(batch)
    assert sum(strokes) == 36
    assert max(strokes) <= 12
    assert len(strokes) <= 4


def test_bytes_become_numbers_between_zero_and_one() -> None:
    x = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
    population = Population(x, torch.zeros(3, dtype=torch.long), (np.arange(3),))
    inputs, _ = population.take(np.array([2, 1]))
    torch.testing.assert_close(inputs, torch.tensor([[1.0], [0.2]]))


def test_fingerprint_sees_who_and_in_which_order() -> None:
    base = schedule_fingerprint([[1, 2], [3]])
    assert len(base) == 8
    assert base == schedule_fingerprint([(1, 2), (3,)])
    assert len({base, *map(schedule_fingerprint, ([[2, 1], [3]], [[1], [2, 3]], [[1, 2, 3]], [[12], [3]]))}) == 5


def test_a_batch_knows_its_size() -> None:
    assert Batch(0, 0, 0, np.arange(3)).num_rows == 3


# --- lock-step --------------------------------------------------------------------------------------------------------


def test_sweeps_that_clients_sit_out() -> None:
    a, b, nothing = np.array([4, 1]), np.array([7]), np.zeros(0, np.int64)
    plan = plan_sweeps(3, [9, 5, 2], [{5: a, 9: nothing}, {9: b}, {9: b, 5: a, 2: nothing}])
    assert (plan.index, plan.participants, plan.num_rows) == (3, (9, 5), [2, 4])
    seen = [[(batch.client_id, batch.slot, batch.local_step) for batch in group] for group in plan.interleaved()]
    assert seen == [[(5, 1, 0)], [(9, 0, 0)], [(9, 0, 1), (5, 1, 1)]]


def test_a_sweep_of_nobody_is_left_out() -> None:
    rows = np.array([0])
    plan = plan_sweeps(0, [1], [{}, {1: rows}, {}, {1: rows}])
    assert [len(group) for group in plan.interleaved()] == [1, 1]


def test_passes_of_given_sizes_are_those_of_one_size() -> None:
    rows = np.arange(10, 21)
    same = draw_pass(0, 2, 5, 1, rows, 4)
    given = draw_pass(0, 2, 5, 1, rows, [4, 4, 3])
    assert [batch.tolist() for batch in same] == [batch.tolist() for batch in given]
    assert [batch.tolist() for batch in draw_batches(0, 2, 5, rows, Work(4, 2))[3:]] == [b.tolist() for b in same]
    assert [len(batch) for batch in draw_pass(0, 2, 5, 1, rows, [0, 5, 0, 4])] == [0, 5, 0, 4]


def test_proportional_sizes_in_closed_form() -> None:
    assert proportional_sizes(4, [4, 8, 12]) == [2, 4, 6]
    assert proportional_sizes(3, [1, 60]) == [1, 5]
    assert proportional_sizes(10, [7, 7]) == [10, 10]
    assert proportional_sizes(50, [29, 71]) == [29, 71]  # int(0.29 * 100) would be 28


def test_proportional_sizes_of_any_clients() -> None:
    for _ in range(50):
        size, num_rows = int(DRAW.integers(1, 40)), DRAW.integers(1, 500, DRAW.integers(1, 12)).tolist()
        found, total = proportional_sizes(size, num_rows), size * len(num_rows)
        for batch, own in zip(found, num_rows, strict=True):
            assert batch >= 1
            assert batch == 1 or 0 <= own * total / sum(num_rows) - batch < 1


def test_each_participant_may_have_work_of_its_own() -> None:
    rows = [np.arange(4), np.arange(4, 12)]
    plan = plan_round(0, 0, [5, 3], rows, [Work(2, 1), Work(3, 2)], "sorted")
    assert plan.participants == (3, 5)
    assert [[batch.num_rows for batch in batches] for batches in plan.batches] == [[3, 3, 2, 3, 3, 2], [2, 2]]
