"""Label-aware participants cover every class, and what the selection remembers is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.label_selection import LabelAware, scaled
from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import Plan, plan_sweeps
from lightning_sfl.core.selection import Uniform

NUM_CLASSES = 4


def population(table: Any) -> Population:
    """Clients with table[i][l] rows of class l."""
    counts = np.asarray(table)
    labels = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])
    ends = np.cumsum(counts.sum(axis=1))
    rows = [np.arange(end - size, end) for size, end in zip(counts.sum(axis=1), ends, strict=True)]
    return Population(torch.zeros(len(labels), 1), torch.from_numpy(labels), tuple(rows))


def two_classes_each(num_clients: int = 24, seed: int = 0) -> Population:
    rng = np.random.default_rng(seed)
    table = np.zeros((num_clients, NUM_CLASSES), np.int64)
    for row in table:
        row[rng.choice(NUM_CLASSES, size=2, replace=False)] = rng.integers(2, 30, size=2)
    return population(table)


def prepared(people: Population, participants: int = 4, step_rows: int | None = 40, **options: Any) -> LabelAware:
    selector = LabelAware(**options)
    selector.prepare(people, int(people.y.max()) + 1, participants, step_rows)
    return selector


def trained(index: int, people: Population, clients: list[int], share: float = 1.0) -> Plan:
    rows = {client: people.rows[client][: max(1, int(share * len(people.rows[client])))] for client in clients}
    return plan_sweeps(index, clients, [rows])


@pytest.mark.parametrize("usage", ["ignored", "unused", "fresh"])
def test_every_class_has_its_share_of_a_joint_batch(usage: Any) -> None:
    people = two_classes_each()
    selector, everybody = prepared(people, usage=usage), np.arange(24)
    for index in range(40):
        chosen = selector.select(index, everybody, 4, seed=0)
        assert chosen == selector.select(index, everybody, 4, seed=0)
        assert len(set(chosen)) == len(chosen)
        assert 4 <= len(chosen) <= 8
        assert all(type(client) is int for client in chosen)
        assert selector.counts[chosen].sum(axis=0).min() >= 40 * len(chosen) // 4 // NUM_CLASSES
        selector.observe(trained(index, people, chosen, 0.5))


def test_another_seed_or_round_chooses_others() -> None:
    selector = prepared(two_classes_each())
    picks = {tuple(sorted(selector.select(index, np.arange(24), 4, seed))) for index in range(4) for seed in range(4)}
    assert len(picks) > 10


def test_only_available_clients_with_as_many_rows_as_classes() -> None:
    people = population([[9, 9, 9, 9]] * 5 + [[1, 1, 1, 0]] * 5)
    selector = prepared(people, participants=2, step_rows=4)
    for index in range(20):
        assert set(selector.select(index, np.array([1, 2, 4, 6, 7]), 2, 0)) <= {1, 2, 4}
    with pytest.raises(ConfigError, match=r"participants=4 is not allowed: at most 3") as refusal:
        selector.select(0, np.array([1, 2, 4, 6, 7]), 4, 0)
    assert "\n" not in str(refusal.value)


def test_clients_whose_share_of_a_large_batch_is_too_small_are_dropped() -> None:
    table = [[50, 50, 50, 50]] * 4 + [[1, 1, 1, 1]] * 4
    for step_rows, smallest in ((80, 200), (64, 4)):
        chosen = [
            client
            for index in range(30)
            for client in prepared(population(table), 3, step_rows, alpha=0.0).select(index, np.arange(8), 3, 0)
        ]
        assert min(sum(table[client]) for client in chosen) == smallest


def test_the_rarest_class_decides_with_alpha_one() -> None:
    """Whoever comes first, the only holder of class 3 comes second."""
    table = [[5, 5, 5, 0]] * 6 + [[0, 0, 1, 9]]
    for index in range(20):
        chosen = prepared(population(table), 2, 4, alpha=1.0).select(index, np.arange(7), 2, 0)
        assert 6 in chosen


def test_who_was_chosen_lately_waits_with_alpha_zero() -> None:
    people = population([[5, 5, 5, 5]] * 12)
    selector = prepared(people, 3, 4, alpha=0.0)
    for index in range(12):
        chosen = selector.select(index, np.arange(12), 3, 0)
        lately = selector.picks[selector.picks[:, 0] >= index - 4, 1].tolist()
        times = np.bincount(lately, minlength=12)
        assert times[chosen[1:]].max() <= np.sort(np.delete(times, chosen[0]))[1]
        selector.observe(trained(index, people, chosen))
    assert selector.picks[:, 0].min() == 12 - 4  # 12 clients // 3 participants rounds are remembered


def test_used_rows_count_no_more() -> None:
    """Clients 0-3 hold more of everything, until they have been trained on."""
    people = population([[9, 9, 9, 9]] * 4 + [[5, 5, 5, 5]] * 4)
    selector = prepared(people, 2, 4, alpha=1.0, usage="unused")
    assert all(selector.select(index, np.arange(8), 2, 0)[1] < 4 for index in range(10))
    selector.observe(trained(0, people, [0, 1, 2, 3]))
    assert all(selector.select(index, np.arange(8), 2, 0)[1] >= 4 for index in range(10))
    assert not any(prepared(people, 2, 4, alpha=1.0).select(index, np.arange(8), 2, 0)[1] >= 4 for index in range(10))


def test_the_freshest_of_the_best_is_taken() -> None:
    people = population([[6, 6, 6, 6]] * 6)
    selector = prepared(people, 2, 4, usage="fresh", top_n=6)
    selector.observe(trained(0, people, [0, 1, 2, 4, 5]))
    for index in range(1, 12):
        chosen = selector.select(index, np.arange(6), 2, 0)
        assert 3 in chosen


def test_uses_are_counted_row_by_row() -> None:
    people = population([[2, 1], [1, 2]])
    selector = prepared(people, 1, 2)
    selector.observe(plan_sweeps(0, [0, 1], [{0: np.array([0, 0, 2])}, {1: np.array([5])}]))
    selector.observe(plan_sweeps(1, [1], [{1: np.array([5, 3])}]))
    assert selector.uses.tolist() == [2, 0, 1, 1, 0, 2]
    assert selector.picks.tolist() == [[0, 0], [0, 1], [1, 1]]


def test_memory_goes_through_a_state_dict() -> None:
    people = two_classes_each()
    one, other = prepared(people, usage="fresh"), prepared(people, usage="fresh")
    for index in range(6):
        one.observe(trained(index, people, one.select(index, np.arange(24), 4, 0)))
    assert one.select(6, np.arange(24), 4, 0) != other.select(6, np.arange(24), 4, 0)
    other.load_state_dict(one.state_dict())
    assert other.select(6, np.arange(24), 4, 0) == one.select(6, np.arange(24), 4, 0)
    LabelAware().load_state_dict(one.state_dict())


def test_what_cannot_be_covered_is_refused_in_one_line() -> None:
    selector = prepared(population([[9, 9, 1]] * 4), 2, 30, max_retry=5)
    with pytest.raises(
        ConfigError, match=r"LabelAware found no 2 to 4 participants for round 3 .* 3 classes"
    ) as refusal:
        selector.select(3, np.arange(4), 2, 0)
    assert "\n" not in str(refusal.value)


def test_without_a_batch_size_every_class_once_is_enough() -> None:
    assert len(prepared(population([[9, 9, 1]] * 4), 2, None).select(0, np.arange(4), 2, 0)) == 2


def test_most() -> None:
    assert LabelAware().most(10) == 20
    assert LabelAware(max_participants=12).most(10) == 12
    assert LabelAware(max_participants=3).most(10) == 10


def test_scaled() -> None:
    assert scaled(np.array([2, 4, 3])).tolist() == [0.0, 1.0, 0.5]
    assert scaled(np.array([7, 7])).tolist() == [0.0, 0.0]


def test_sequences_are_refused() -> None:
    texts = Population(torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), (np.arange(4),))
    with pytest.raises(ConfigError, match="have no class per row"):
        LabelAware().prepare(texts, 5, 1, 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [("alpha", 1.1), ("usage", "cumulative"), ("top_n", 0), ("freshness_decay", -0.1), ("max_retry", 0),
     ("max_participants", 0)],
)  # fmt: skip
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"selection.{key}={value!r} is not allowed: "):
        LabelAware(**{key: value})


def test_only_what_remembers_depends_on_the_past() -> None:
    assert not Uniform.depends_on_past
    assert LabelAware.depends_on_past
