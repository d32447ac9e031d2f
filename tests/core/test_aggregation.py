"""The weighted average: closed forms, counters by their maximum, weights of which only the ratios matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sfl.core.aggregation import normalised, weighted_average
from lightning_sfl.core.errors import ConfigError


def test_weights_are_normalised() -> None:
    assert normalised([1, 3]) == [0.25, 0.75]
    assert normalised([0, 5]) == [0, 1]
    draw = np.random.default_rng(0)
    for _ in range(50):
        weights = draw.uniform(0, 1000, draw.integers(1, 12)).tolist()
        assert sum(normalised(weights)) == pytest.approx(1, abs=1e-14)
        assert normalised([w * 8 for w in weights]) == normalised(weights)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 3.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_without_a_meaning(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="aggregation weights"):
        normalised(weights)


def test_average_in_closed_form() -> None:
    states = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([5.0, 8.0])}, {"w": torch.tensor([100.0, 100.0])}]
    assert weighted_average(states, [3, 1, 0])["w"].tolist() == [2, 2]


def test_what_has_no_weight_does_not_count_even_if_it_is_nan() -> None:
    nan = torch.tensor([float("nan")])
    states = [{"w": torch.tensor([2.0]), "n": torch.tensor(3)}, {"w": nan, "n": torch.tensor(9)}]
    merged = weighted_average(states, [1, 0])
    assert merged["w"].item() == 2
    assert merged["n"].item() == 3


def test_counters_take_the_maximum_and_stay_integers() -> None:
    merged = weighted_average([{"n": torch.tensor(4)}, {"n": torch.tensor(7)}, {"n": torch.tensor(5)}], [1, 1, 8])
    assert merged["n"].item() == 7
    assert merged["n"].dtype == torch.int64


def test_one_state_comes_back_bit_for_bit_and_as_a_copy() -> None:
    state = {"w": torch.rand(50)}
    merged = weighted_average([state], [0.3])
    assert torch.equal(merged["w"], state["w"])
    merged["w"].zero_()
    assert bool(state["w"].any())


def test_the_states_are_left_alone() -> None:
    states = [{"w": torch.ones(3), "n": torch.tensor(1)}, {"w": torch.zeros(3), "n": torch.tensor(2)}]
    weighted_average(states, [1, 1])
    assert states[0]["w"].tolist() == [1, 1, 1]
    assert states[0]["n"].item() == 1


def test_named_buffers_may_be_taken_from_the_first() -> None:
    states = [{"w": torch.tensor([value]), "mean": torch.tensor([value])} for value in (2.0, 4.0)]
    assert weighted_average(states, [1, 1], ["mean"])["mean"].item() == 3
    merged = weighted_average(states, [1, 1], ["mean"], "first")
    assert (merged["w"].item(), merged["mean"].item()) == (3, 2)
    merged["mean"].zero_()
    assert states[0]["mean"].item() == 2


def test_average_against_float64() -> None:
    draw = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(20, generator=draw)} for _ in range(7)]
    weights = torch.rand(7, generator=draw).tolist()
    wanted = sum(w * s["w"].double() for w, s in zip(weights, states, strict=True)) / sum(weights)
    torch.testing.assert_close(weighted_average(states, weights)["w"].double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_state_for_every_weight() -> None:
    with pytest.raises(ValueError, match="longer"):
        weighted_average([{"w": torch.ones(1)}], [1, 1])
