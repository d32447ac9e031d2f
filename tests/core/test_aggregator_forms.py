"""Aggregation rules in closed form, and against numpy or distances taken one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

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
from tests.core.merges import drawn, merged, states


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


def moved(way: tuple[float, float]) -> CosineWeighted:
    """A rule that was told of a merge at (3, -1), and then of one where what is merged had gone this way."""
    rule = CosineWeighted(reference="previous")
    merged(rule, (5.0, 5.0), (1.0, 0.0), anchor=(3.0 - way[0], -1.0 - way[1]))
    return rule


def test_compared_with_the_previous_update_in_closed_form() -> None:
    """r = (2, 0): c = (.6, 1), shares (.375, .625); and c = (1, 0, -1), where the mean points along (0, 1)."""
    here, way = (3.0, -1.0), (2.0, 0.0)
    assert merged(moved(way), (3.0, 4.0), (1.0, 0.0), anchor=here) == pytest.approx([1.75, 1.5], abs=1e-12)
    apart = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    assert merged(moved(way), *apart, anchor=here) == pytest.approx([1, 0], abs=1e-12)
    assert merged(CosineWeighted(), *apart, anchor=here) == pytest.approx([0, 1], abs=1e-12)
    assert merged(moved((-7.0, 0.0)), *apart, anchor=here) == pytest.approx([-1, 0], abs=1e-12)
    assert merged(moved(way), *apart[::2], anchor=here) == pytest.approx([1, 0], abs=1e-12)  # whose mean is 0
    assert merged(moved(way), (-1.0, 0.0), (0.0, 1.0), anchor=here) == [-0.5, 0.5]  # no share is left
    soft = CosineWeighted(reference="previous", temperature=0.5)
    merged(soft, (1.0, 0.0), anchor=(1.0, -1.0))
    shares = np.exp([2, 0, -2]) / np.exp([2, 0, -2]).sum()
    assert merged(soft, *apart, anchor=here) == pytest.approx([shares[0] - shares[2], shares[1]], abs=1e-12)


def test_a_previous_update_along_the_mean_is_the_mean() -> None:
    updates = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    assert merged(moved((4.0, 2.0)), *updates, anchor=(3.0, -1.0)) == pytest.approx([0.8, 0.2], abs=1e-12)
    assert merged(moved((4.0, 1.0)), *updates, anchor=(3.0, -1.0)) != pytest.approx([0.8, 0.2], abs=1e-3)


def test_without_a_previous_update_it_is_the_mean() -> None:
    """In the first merge, and where nothing has moved since the one before; the move before that does not count."""
    updates = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    assert merged(CosineWeighted(reference="previous"), *updates) == merged(CosineWeighted(), *updates)
    for way in ((0.0, 0.0), (1e-13, 0.0)):
        assert merged(moved(way), *updates, anchor=(3.0, -1.0)) == pytest.approx([0.8, 0.2], abs=1e-12)
    rule = moved((2.0, 0.0))
    for _ in range(2):
        found = merged(rule, *updates, anchor=(3.0, -1.0))
    assert found == pytest.approx([0.8, 0.2], abs=1e-12)


def test_statistics_have_no_say_in_the_previous_update() -> None:
    rule = CosineWeighted(reference="previous")
    for start in (0.0, 1.0):
        anchor = {"w": torch.tensor([start, 0.0]), "mean": torch.tensor([900 * start]), "n": torch.tensor(0)}
        ends = [{**anchor, "w": anchor["w"] + torch.tensor(step)} for step in ([3.0, 4.0], [1.0, 0.0])]
        found = rule.merge(ends, anchor, [1.0, 1.0], ["mean", "n"])
    assert (found["w"] - anchor["w"]).tolist() == pytest.approx([1.75, 1.5])
    assert rule.remembered is not None
    assert {*rule.remembered} == {"w"}


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
