"""Pull, score vectors, requests, collections and the proportion's schedule, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sfl.core.branches import pull_towards
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.population import Population
from lightning_sfl.core.proportion_schedule import ProportionSchedule
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.replay import Replay, budget, collect, order_of_asking, request, spread
from lightning_sfl.core.score_vector import ScoreVectors, label_distribution


def branch(value: float) -> nn.Module:
    module = nn.BatchNorm1d(1, dtype=torch.float64)
    nn.init.constant_(module.weight, value)
    module.num_batches_tracked.fill_(int(value) + 3)
    return module


def test_pull() -> None:
    low, high = branch(0.0), branch(2.0)
    for times in range(1, 6):
        master = {"weight": (low.weight + high.weight).detach() / 2}
        for each in (low, high):
            rest = {name: tensor.clone() for name, tensor in each.state_dict().items()}
            pull_towards(each, {**rest, **master}, 0.1)
        if times == 1:
            assert [low.weight.item(), high.weight.item()] == pytest.approx([1 / 11, 21 / 11], rel=1e-12)
        assert (low.weight.item() + high.weight.item()) / 2 == pytest.approx(1, rel=1e-12)
        assert high.weight.item() - low.weight.item() == pytest.approx(2 / 1.1**times, rel=1e-12)
    assert (low.num_batches_tracked.item(), high.num_batches_tracked.item()) == (3, 5)


@pytest.mark.parametrize(("met", "score"), [("01", [1 / 3, 2 / 3]), ("011", [1 / 7, 6 / 7]), ("", [0.5, 0.5])])
def test_score_vector(met: str, score: list[float]) -> None:
    scores = ScoreVectors(np.zeros((1, 2)), np.zeros(1))
    for label in met:
        scores.observe(0, label_distribution(np.array([int(label)]), 2), 0.5)
    assert scores.all()[0] == pytest.approx(score, rel=1e-12)
    assert scores.deficit(0).tolist() == [0, 0]
    again = ScoreVectors.of(scores.state())
    assert np.array_equal(again.all(), scores.all())


def test_deficits_are_against_the_mean_over_branches() -> None:
    scores = ScoreVectors(np.zeros((3, 2)), np.zeros(3))
    scores.observe(0, np.array([1.0, 0.0]), 0.5)
    scores.observe(1, np.array([0.0, 1.0]), 0.5)
    assert scores.deficit(0) == pytest.approx([0, 0.5])
    assert scores.deficit(1) == pytest.approx([0.5, 0])
    assert scores.deficit(2).tolist() == [0, 0]
    assert label_distribution(np.array([1, 1, 0]), 3, normalised=False).tolist() == [1, 2, 0]


def test_request() -> None:
    deficit = np.maximum(0, 0.25 - np.array([0.5, 0.5, 0, 0]))
    assert budget(100, 0.05, 0) == 5
    assert request(deficit, 5).tolist() == [0, 0, 3, 2]
    assert request(np.zeros(4), 5).tolist() == request(deficit, 0).tolist() == [0, 0, 0, 0]
    assert (budget(50, 0.01, 0), budget(150, 0.01, 0), budget(10, 0.01, 7)) == (0, 2, 7)


def test_requests_add_up() -> None:
    draws = np.random.default_rng(0)
    for _ in range(300):
        deficit = np.maximum(0, draws.normal(size=6)) + np.array([0, 0, 0, 0, 0, 1e-3])
        total = int(draws.integers(1, 40))
        wanted = request(deficit, total)
        assert wanted.sum() == total
        assert wanted.min() >= 0
        assert not wanted[deficit == 0].any()
        assert np.abs(wanted - total * deficit / deficit.sum()).max() <= 3.5


def people(*labels: list[int]) -> Population:
    y = torch.tensor([label for own in labels for label in own])
    ends = np.cumsum([len(own) for own in labels])
    return Population(
        torch.zeros(len(y), 1), y, tuple(np.arange(e - len(o), e) for o, e in zip(labels, ends, strict=True))
    )


def test_assistants_give_what_they_have() -> None:
    population = people([0, 0, 1], [1, 1, 1, 2], [2, 0])
    draws = stream(0, "replay")
    found = collect(np.array([1, 3, 2]), [0, 1, 0, 2, 0], population, 256, draws)
    assert [client for client, _ in found] == [0, 1, 2]
    assert [sorted(population.labels_of(rows).tolist()) for _, rows in found] == [[0, 1], [1, 1, 2], [2]]
    for client, rows in found:
        assert set(rows) <= set(population.rows[client])
        assert len(set(rows)) == len(rows)
    assert collect(np.array([0, 0, 9]), [0, 0], population, 256, draws) == []
    ((_, capped),) = collect(np.array([2, 3, 1]), [1], population, 2, draws)
    assert population.labels_of(capped).tolist() == [1, 1]


def test_who_is_asked() -> None:
    draws = stream(0, "asked")
    repeated = list(order_of_asking(Replay(assistants=50), [3, 5], draws))
    assert len(repeated) == 50
    assert set(repeated) == {3, 5}
    once = Replay(sampling="pass")
    assert sorted(order_of_asking(once, [3, 5, 9], draws)) == [3, 5, 9]
    assert len(list(order_of_asking(Replay(sampling="pass", assistants=2), [3, 5, 9], draws))) == 2
    assert len(list(order_of_asking(Replay(assistants=None), [3, 5, 9], draws))) == 3
    assert list(order_of_asking(once, [], draws)) == []


def test_rows_are_dealt_to_steps_in_order() -> None:
    found = [(7, np.arange(5)), (8, np.arange(10, 13))]
    dealt = spread(found, 3)
    assert [[(client, rows.tolist()) for client, rows in part] for part in dealt] == [
        [(7, [0, 1, 2])], [(7, [3, 4]), (8, [10])], [(8, [11, 12])],
    ]  # fmt: skip
    assert spread(found, 1)[0][0][1].tolist() == [0, 1, 2, 3, 4]
    assert spread([], 4) == [[], [], [], []]


@pytest.mark.parametrize(
    ("rule", "norms", "proportion"),
    [
        ("paper", (1, 2), 0.02), ("abs_ratio", (1, 2), 0.02), ("one_plus_delta", (1, 2), 0.012),
        ("paper", (1, 0.5), 0.01), ("abs_ratio", (1, 0.5), 0.01), ("one_plus_delta", (1, 0.5), 0.01),
        ("paper", (0, 1), 0.01), ("abs_ratio", (1e-9, 1), 0.5), ("paper", (1,), 0.01),
        ("one_plus_delta", (1, 1.1, 1.1, 1.21), 0.0121),
    ],
)  # fmt: skip
def test_proportion(rule: str, norms: tuple[float, ...], proportion: float) -> None:
    schedule = ProportionSchedule(rule, 0.01, (0.01, 0.5), 0.2)  # type: ignore[arg-type]
    for norm in norms:
        schedule.update(norm)
    assert schedule.proportion == pytest.approx(proportion, rel=1e-9)


BAD = [
    ("least", 0.0), ("most", 0.001), ("proportion", 0.6), ("decay", 1.5), ("assistants", -1), ("minimum", -1),
    ("rule", "ratio"), ("pool", "all"), ("rows_per_assistant", 0), ("largest_change", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
def test_ranges(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"replay\.{key}={value!r} is not allowed: "):
        Replay(**{key: value})  # type: ignore[arg-type]
