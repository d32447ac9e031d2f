"""Secure aggregation as it is where only its name is given: who must be left, and how large numbers may be."""

from __future__ import annotations

import pytest
import torch

from lightning_sfl.core.privacy import SecureAggregation
from lightning_sfl.core.privacy.base import Moment, Setting


def ready(participants: int, drop_out: float = 0.0) -> SecureAggregation:
    rule = SecureAggregation(drop_out=drop_out)
    rule.prepare(Setting(participants, 1.0, "", True))
    return rule


@pytest.mark.parametrize(("count", "least"), [(2, 2), (3, 2), (4, 3), (5, 4), (6, 4), (7, 5), (9, 6), (10, 7)])
def test_two_thirds_rounded_up_must_be_left(count: int, least: int) -> None:
    assert ready(count).least(count) == least


def test_the_sum_of_four_of_five_is_opened_and_that_of_three_is_not() -> None:
    rule, met = ready(5, drop_out=0.3), set()
    for round in range(12):
        aborted = rule.aborted
        found = rule.average([torch.ones(2)] * 5, [1.0] * 5, range(5), [Moment(0, round)] * 5)
        left = 5 - int(rule.scalars()["privacy/dropped"])
        met.add(left)
        assert rule.aborted - aborted == (left < 4)
        torch.testing.assert_close(found, torch.full((2,), float(left >= 4)), rtol=0, atol=1e-4)
    assert {3, 4} <= met


def test_numbers_beyond_eight_are_cut() -> None:
    rule = ready(2)
    found = rule.average([torch.tensor([9.0, 7.5, -8.5])] * 2, [1.0] * 2, range(2), [Moment(0, 0)] * 2)
    torch.testing.assert_close(found, torch.tensor([8.0, 7.5, -8.0]), rtol=0, atol=1e-4)
    assert rule.scalars()["privacy/cut_values"] == 4
