"""Aggregation rules: closed forms, what they have in common, and the settings at which they are FedAvg."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.aggregation import weighted_average
from lightning_sfl.core.aggregators import (
    Aggregator,
    CosineWeighted,
    DeviationClipping,
    Krum,
    Median,
    NormClipping,
    TrimmedMean,
    Unbiased,
    WeightedAverage,
)
from lightning_sfl.core.aggregators.base import inner_products, median
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.state import State

EVERY = [
    WeightedAverage(), CosineWeighted(), CosineWeighted(temperature=0.5), CosineWeighted(reference="others"),
    CosineWeighted(preserve_norm=True), DeviationClipping(), NormClipping(), Krum(0), Krum(1, 2), TrimmedMean(1),
    Median(),
]  # fmt: skip
ROBUST = [Krum(2), Krum(2, 3), TrimmedMean(2), Median()]


def states(*rows: Any) -> list[State]:
    return [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]


def merged(rule: Aggregator, *updates: Any, weights: Any = None, anchor: Any = None) -> list[float]:
    """The merged update, the clients having started from the anchor."""
    origin = torch.zeros(len(updates[0]), dtype=torch.float64) if anchor is None else torch.tensor(anchor)
    handed_in = [{"w": origin + state["w"]} for state in states(*updates)]
    result = rule.merge(handed_in, {"w": origin}, weights or [1.0] * len(updates))
    return (result["w"] - origin).tolist()


def drawn(seed: int, count: int = 7, size: int = 20) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(seed).normal(size=(count, size)).tolist()
    return found


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_cosines_weigh_in_closed_form() -> None:
    """r = (2/3, 1/3), c = (.894427, .894427, .447214), shares (.4, .4, .2)."""
    updates = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    assert merged(CosineWeighted(), *updates) == pytest.approx([0.8, 0.2], abs=1e-12)
    assert merged(CosineWeighted(power=0), *updates) == pytest.approx([2 / 3, 1 / 3], abs=1e-12)
    assert merged(CosineWeighted(power=2), *updates) == pytest.approx([8 / 9, 1 / 9], abs=1e-12)
    ratio = math.exp((math.sqrt(0.8) - math.sqrt(0.2)) / 0.5)
    assert merged(CosineWeighted(temperature=0.5), *updates)[1] == pytest.approx(1 / (1 + 2 * ratio), abs=1e-12)


def test_the_norm_of_the_mean_can_be_kept() -> None:
    """|r| = .745356 and the result (.8, .2) is .824621 long."""
    updates = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    shrunk = math.sqrt(5 / 9) / math.sqrt(0.68)
    found = merged(CosineWeighted(preserve_norm=True), *updates, anchor=(3.0, -1.0))
    assert found == pytest.approx([0.8 * shrunk, 0.2 * shrunk], abs=1e-12)
    assert merged(CosineWeighted(preserve_norm=True), (0.0, 0.0), (0.0, 0.0)) == [0, 0]


def test_a_longer_step_leaves_statistics_as_they_were_merged() -> None:
    """Three times the update, by which a variance of 9 that goes to 3 would become -9."""
    handed_in = [
        {"w": torch.tensor([value]), "var": torch.tensor([value]), "n": torch.tensor(count)}
        for count, value in enumerate((2.0, 4.0))
    ]
    anchor = {"w": torch.tensor([1.0]), "var": torch.tensor([9.0]), "n": torch.tensor(7)}
    rule = Unbiased()
    rule.tell_rows([1, 1])
    found = rule.merge(handed_in, anchor, [3.0, 3.0], ["var", "n"])
    assert {name: tensor.item() for name, tensor in found.items()} == {"w": 7.0, "var": 3.0, "n": 1}


def test_clients_that_take_part_stand_for_the_others_in_closed_form() -> None:
    """K = 4 clients with n = 20 rows; m = 2 with 8 and 2: 4 * 8 / 40 and 4 * 2 / 40 of their updates."""
    rule = Unbiased()
    rule.tell_rows([8, 2, 6, 4])
    assert merged(rule, (1.0, 0.0), (0.0, 1.0), weights=[8.0, 2.0], anchor=(5.0, 5.0)) == pytest.approx([0.8, 0.2])


def test_over_all_draws_it_is_the_average_of_all_clients() -> None:
    rows = [1.0, 2.0, 5.0, 9.0, 3.0]
    rule, updates = Unbiased(), drawn(3, len(rows), 4)
    rule.tell_rows([int(count) for count in rows])
    everybody = merged(WeightedAverage(), *updates, weights=rows)

    def mean(rule: Aggregator) -> np.ndarray:
        draws = list(itertools.combinations(range(len(rows)), 2))
        return np.mean([merged(rule, *(updates[i] for i in d), weights=[rows[i] for i in d]) for d in draws], axis=0)

    np.testing.assert_allclose(mean(rule), everybody, atol=1e-12)
    assert np.abs(mean(WeightedAverage()) - everybody).max() > 0.05


def test_opposite_updates_have_no_weight() -> None:
    """r = (0, 1/3): only the update along it counts."""
    assert merged(CosineWeighted(), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)) == pytest.approx([0, 1], abs=1e-12)
    assert merged(CosineWeighted(temperature=0.5), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))[0] == pytest.approx(0)


def test_compared_with_the_others_nobody_vouches_for_itself() -> None:
    """A large update dominates the mean, and so agrees with it; it does not agree with the others' mean."""
    updates = [(9.0, -9.0), (1.0, 1.0), (1.0, 1.0)]
    assert merged(CosineWeighted(), *updates)[0] > 3
    assert merged(CosineWeighted(reference="others"), *updates) == pytest.approx([1, 1])


def test_without_a_direction_the_plain_weights_hold() -> None:
    assert merged(CosineWeighted(), (1.0, 0.0), (-1.0, 0.0)) == [0, 0]
    assert merged(CosineWeighted(), (0.0, 0.0), (0.0, 0.0)) == [0, 0]
    assert merged(CosineWeighted(), (0.0, 0.0), (2.0, 0.0)) == [2, 0]


def test_where_all_point_away_from_the_others_the_plain_weights_hold() -> None:
    """r = (-0.5, 0) is no zero, yet the others' mean is opposite to either update, so that no share is left."""
    opposite = [(1.0, 0.0), (-2.0, 0.0)]
    assert merged(CosineWeighted(reference="others"), *opposite) == [-0.5, 0]
    assert merged(CosineWeighted(reference="others"), *opposite, weights=[3, 1]) == [0.25, 0]
    assert merged(CosineWeighted(reference="mean"), *opposite) == [-2, 0]


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_common_scale_of_all_updates_scales_the_result(factor: float) -> None:
    updates = drawn(0)
    scaled = (factor * np.array(updates)).tolist()
    for rule in EVERY:
        assert merged(rule, *scaled) == pytest.approx([factor * value for value in merged(rule, *updates)], rel=1e-9)


def test_deviations_are_cut_in_closed_form() -> None:
    """Mean 2, deviations 2, 2, 2, 6, limit 1.5 * 2: the last becomes 2 + 3."""
    updates = [(0.0,), (0.0,), (0.0,), (8.0,)]
    assert merged(DeviationClipping(factor=1.5), *updates) == pytest.approx([1.25], abs=1e-12)
    assert merged(DeviationClipping(threshold=3.0), *updates) == pytest.approx([1.25], abs=1e-12)
    assert merged(DeviationClipping(factor=3.0), *updates) == pytest.approx([2], abs=1e-12)
    assert merged(DeviationClipping(threshold=3.0), *updates, weights=[1, 1, 1, 0]) == [0]


def test_lengths_are_cut_in_closed_form() -> None:
    """A length equal to the limit becomes tanh(1) of it."""
    assert merged(NormClipping(threshold=5.0), (3.0, 4.0)) == pytest.approx(
        [0.6 * 5 * math.tanh(1), 0.8 * 5 * math.tanh(1)]
    )
    assert math.tanh(1) == pytest.approx(0.761594, abs=1e-6)
    assert merged(NormClipping(threshold=5.0), (0.0, 0.0)) == [0, 0]
    assert merged(NormClipping(factor=2.0), (1.0,), (1.0,), (100.0,)) == pytest.approx(
        [2 / 3 * (2 * math.tanh(0.5) + 1)]
    )
    for seed in range(20):
        update = np.array(drawn(seed, 1)[0])
        clipped = np.array(merged(NormClipping(threshold=2.0), update.tolist()))
        assert np.linalg.norm(clipped) < 2
        assert clipped / np.linalg.norm(clipped) == pytest.approx(update / np.linalg.norm(update))


def test_the_median_counts_clients_whatever_their_weights() -> None:
    """Weights 5, 1, 2 of 8. Updates 0, -8, 24: mean 5, deviations 5, 13, 19, limit 13: 24 becomes 5 + 13."""
    far = [(0.0,), (-8.0,), (24.0,)]
    assert merged(DeviationClipping(factor=1.0), *far, weights=[5, 1, 2]) == pytest.approx([(18 * 2 - 8) / 8])
    lengths = (math.tanh(1 / 2) * 5 + math.tanh(2 / 2) + math.tanh(4 / 2) * 2) * 2 / 8
    assert merged(NormClipping(factor=1.0), (1.0,), (2.0,), (4.0,), weights=[5, 1, 2]) == pytest.approx([lengths])
    middle = (math.tanh(1 / 2) * 3 + math.tanh(3 / 2)) * 2 / 4  # of two the limit is 2, wherever the weight lies
    assert merged(NormClipping(factor=1.0), (1.0,), (3.0,), weights=[3, 1]) == pytest.approx([middle])


def test_krum_takes_whoever_has_near_neighbours() -> None:
    """f = 1, 2 neighbours of 5: 0.1 lies nearest to 0 and 0.2."""
    updates = [(0.0,), (0.2,), (0.1,), (0.5,), (90.0,)]
    assert merged(Krum(), *updates) == [pytest.approx(0.1)]
    assert merged(Krum(1, 2), *updates) == [pytest.approx(0.05)]
    scores = Krum().scores(inner_products(states(*updates), states((0.0,))[0]))
    assert scores.tolist() == pytest.approx([0.05, 0.05, 0.02, 0.25, 89.8**2 + 89.5**2])


def test_krum_against_distances_one_by_one() -> None:
    for seed in range(20):
        updates = np.array(drawn(seed, 9, 5))
        apart = ((updates[:, None] - updates[None]) ** 2).sum(axis=-1)
        scores = [sum(sorted(np.delete(apart[i], i))[: 9 - 2 - 2]) for i in range(9)]
        kept = np.argsort(scores, kind="stable")[:3]
        assert merged(Krum(2, 3), *updates.tolist()) == pytest.approx(updates[kept].mean(axis=0).tolist())


def test_trimmed_mean_and_median_in_closed_form() -> None:
    updates = [(5.0, 1.0), (1.0, 2.0), (3.0, -70.0), (900.0, 4.0), (2.0, 3.0)]
    assert merged(TrimmedMean(1), *updates) == pytest.approx([10 / 3, 2])
    assert merged(TrimmedMean(2), *updates) == merged(Median(), *updates) == [3, 2]
    assert merged(Median(), *updates[:4]) == [4, 1.5]
    assert merged(Median(), *updates[:1]) == [5, 1]
    assert median(torch.tensor([1.0, 2.0, 4.0, 9.0])) == 3


def test_ranks_against_numpy() -> None:
    for seed in range(20):
        updates = np.array(drawn(seed, 4 + seed % 5))
        assert merged(Median(), *updates.tolist()) == pytest.approx(np.median(updates, axis=0).tolist())
        trimmed = np.sort(updates, axis=0)[1:-1].mean(axis=0)
        assert merged(TrimmedMean(1), *updates.tolist()) == pytest.approx(trimmed.tolist())


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [CosineWeighted(power=0), DeviationClipping(threshold=1e30), NormClipping(threshold=1e30)]
)
def test_limits_that_are_fedavg_bit_for_bit(rule: Aggregator) -> None:
    """Updates that all point into one half space, so that no cosine is negative."""
    draw = torch.Generator().manual_seed(0)
    handed_in = [{"w": torch.rand(50, generator=draw)} for _ in range(5)]
    weights = [1.0, 2.0, 4.0, 8.0, 1.0]
    wanted = weighted_average(handed_in, weights)
    assert torch.equal(rule.merge(handed_in, {"w": torch.zeros(50)}, weights)["w"], wanted["w"])


def test_limits_that_are_uniform_fedavg() -> None:
    updates, weights = drawn(3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    uniform = merged(WeightedAverage(), *updates)
    assert merged(TrimmedMean(0), *updates, weights=weights) == pytest.approx(uniform)
    assert merged(Krum(0, 7), *updates, weights=weights) == pytest.approx(uniform)
    assert merged(CosineWeighted(temperature=1e9), *updates) == pytest.approx(uniform, abs=1e-8)


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: type(rule).__name__)
def test_equal_states_come_out_as_they_are(rule: Aggregator) -> None:
    state = {"w": torch.rand(30), "n": torch.tensor(7)}
    anchor = {"w": torch.rand(30), "n": torch.tensor(3)}
    result = rule.merge([state] * 5, anchor, [0.3, 0.1, 5, 1, 1])
    if isinstance(rule, NormClipping):
        assert float((result["w"] - anchor["w"]).norm()) < float((state["w"] - anchor["w"]).norm())
    else:
        assert torch.equal(result["w"], state["w"])
    assert result["n"].item() == 7
    result["w"].zero_()
    assert bool(state["w"].any())


# --- all rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: type(rule).__name__)
def test_clients_may_come_in_any_order_and_start_anywhere(rule: Aggregator) -> None:
    for seed in range(10):
        updates, order = drawn(seed), np.random.default_rng(seed).permutation(7)
        weights = np.arange(1.0, 8)
        plain = merged(rule, *updates, weights=weights.tolist())
        assert merged(rule, *[updates[i] for i in order], weights=weights[order].tolist()) == pytest.approx(plain)
        assert merged(rule, *updates, weights=weights.tolist(), anchor=[3.0] * 20) == pytest.approx(plain)


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: type(rule).__name__)
def test_halves_are_judged_together(rule: Aggregator) -> None:
    """One tensor of 20 numbers or three tensors: the same."""
    updates = drawn(5)
    parts = [{"a": u[:3], "b": u[3:15].view(3, 4), "c": u[15:]} for u in torch.tensor(updates, dtype=torch.float64)]
    anchor = {name: torch.zeros_like(tensor) for name, tensor in parts[0].items()}
    result = rule.merge(parts, anchor, [1.0] * 7)
    assert torch.cat([result[name].flatten() for name in "abc"]).tolist() == pytest.approx(merged(rule, *updates))


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: type(rule).__name__)
def test_buffers_follow_and_have_no_say(rule: Aggregator) -> None:
    """Statistics of huge size do not change what becomes of the weights; counters stay integers."""
    updates = drawn(6)
    weights = [1.0, 1.0, 2.0, 2.0, 1.0, 3.0, 1.0]
    plain = merged(rule, *updates, weights=weights)
    handed_in = [
        {"w": state["w"], "mean": torch.tensor([1e6 * i]), "n": torch.tensor(i)}
        for i, state in enumerate(states(*updates))
    ]
    anchor = {"w": torch.zeros(20, dtype=torch.float64), "mean": torch.tensor([0.0]), "n": torch.tensor(0)}
    for policy in ("average", "first"):
        result = rule.merge(handed_in, anchor, weights, ["mean", "n"], policy)  # type: ignore[arg-type]
        assert result["w"].tolist() == pytest.approx(plain)
        assert 0 <= result["mean"].item() <= 6e6
        assert result["mean"].item() % 1e6 == 0 or policy == "average"
        assert result["n"].dtype == torch.int64
        assert 0 <= result["n"].item() <= 6


@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: type(rule).__name__)
def test_two_liars_of_seven_do_not_carry_the_result_away(rule: Aggregator) -> None:
    """Honest updates lie within 1 of (10, ...): so does the result, buffers included, whatever the liars send."""
    for seed in range(10):
        draw = np.random.default_rng(seed)
        honest = [{"w": torch.from_numpy(10 + draw.uniform(-1, 1, 8)), "mean": torch.ones(1)} for _ in range(5)]
        lies = [{"w": torch.from_numpy(1e8 * draw.normal(size=8)), "mean": torch.full((1,), 1e8)} for _ in range(2)]
        handed_in = [*lies, *honest]
        order = draw.permutation(7)
        anchor = {"w": torch.zeros(8, dtype=torch.float64), "mean": torch.zeros(1)}
        result = rule.merge([handed_in[i] for i in order], anchor, [1.0] * 7, ["mean"])
        assert float((result["w"] - 10).abs().max()) <= 1
        assert result["mean"].item() == 1
        average = weighted_average(handed_in, [1.0] * 7)
        assert float((average["w"] - 10).abs().max()) > 1e5


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        (CosineWeighted, "power", -1.0), (CosineWeighted, "power", math.inf), (CosineWeighted, "temperature", 0.0),
        (CosineWeighted, "reference", "last"), (DeviationClipping, "factor", 0.0), (NormClipping, "threshold", -1.0),
        (NormClipping, "threshold", math.nan), (Krum, "num_byzantine", -1), (Krum, "num_kept", 0),
        (TrimmedMean, "num_trimmed", -1),
    ],
)  # fmt: skip
def test_ranges(rule: type[Aggregator], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"aggregator.{key}={value!r} is not allowed: ") as refusal:
        rule(**{key: value})
    assert "\n" not in str(refusal.value)


def test_how_many_clients_a_rule_needs() -> None:
    assert [rule.least for rule in (Median(), TrimmedMean(2), Krum(1), Krum(2), Krum(1, 9))] == [1, 5, 5, 7, 10]
