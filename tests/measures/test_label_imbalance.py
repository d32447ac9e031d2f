"""Label imbalance against closed forms and against plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_sfl.core.population import Population
from lightning_sfl.measures.label_imbalance import imbalance, label_counts, main_label


def of(*counts: float) -> float:
    return float(imbalance(torch.tensor([counts], dtype=torch.float64)))


def test_closed_forms() -> None:
    assert of(3, 3, 3, 3) == pytest.approx(0, abs=1e-15)
    assert of(0, 5, 0, 0) == 1
    assert of(7, 7, 0, 0) == pytest.approx(1 / 2)  # two of four classes: log 2 / log 4
    assert of(5, 5) == pytest.approx(0, abs=1e-15)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert of(30, 10) == pytest.approx(1 - entropy / math.log(2))
    for classes in range(2, 12):  # k of C classes, alike
        for held in range(1, classes + 1):
            expected = 1 - math.log(held) / math.log(classes)
            assert of(*([4] * held + [0] * (classes - held))) == pytest.approx(expected, abs=1e-12)


def test_nothing_to_count_and_a_single_class_have_no_value() -> None:
    assert math.isnan(of(0, 0, 0))
    assert math.isnan(of(4))


@pytest.mark.parametrize("seed", range(5))
def test_scale_and_order_do_not_matter_and_merging_towards_uniform_lowers_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 20, size=6) + np.array([1, 0, 0, 0, 0, 0])
    value = of(*counts)
    assert 0 <= value <= 1
    assert of(*(7 * counts)) == pytest.approx(value)
    assert of(*draw.permutation(counts)) == pytest.approx(value)
    assert of(*(counts + 1)) <= value


def test_counts_of_steps_with_shares_sequences_and_ignored_labels() -> None:
    whole, mix = torch.tensor([0, 0, 2]), torch.tensor([1, 1])
    sequences = torch.tensor([[0, 1, -100], [-100, 1, 3]])
    steps = [((whole, 1.0),), ((mix, 0.25), (whole[:2], 0.75)), ((sequences, 1.0),), ()]
    expected = [[2, 0, 1, 0], [1.5, 0.5, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0]]
    assert label_counts(steps, 4).tolist() == expected


def test_what_is_no_class_number_counts_for_nothing() -> None:
    steps = [((torch.rand(5), 1.0),), ((torch.tensor([1, 1]), 1.0), (torch.rand(2, 3), 1.0))]
    assert label_counts(steps, 3).tolist() == [[0, 0, 0], [0, 2, 0]]
    assert label_counts(steps[:1], 3).tolist() == [[0, 0, 0]]
    assert label_counts([], 3).shape == (0, 3)


def test_the_main_label_is_the_most_frequent_and_the_smallest_of_equals() -> None:
    labels = torch.tensor([2, 2, 1, 3, 1, -1, -1, -1])
    mine = Population(torch.zeros(8, 1), labels, (np.array([0, 1, 2]), np.array([2, 3, 5, 6]), np.array([5, 6, 7])))
    assert [main_label(mine, client) for client in range(3)] == [2, 1, None]
    text = Population(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), (np.array([0, 1]),))
    assert main_label(text, 0) is None
    assert main_label(None, 0) is None
