"""Aggregation rules: what they have in common, and the settings at which they are FedAvg."""

from __future__ import annotations

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
    WeightedAverage,
)
from lightning_sfl.core.errors import ConfigError
from tests.core.merges import drawn, merged, states

EVERY = [
    WeightedAverage(), CosineWeighted(), CosineWeighted(temperature=0.5), CosineWeighted(reference="others"),
    CosineWeighted(preserve_norm=True), DeviationClipping(), NormClipping(), Krum(0), Krum(1, 2), TrimmedMean(1),
    Median(),
]  # fmt: skip
ROBUST = [Krum(2), Krum(2, 3), TrimmedMean(2), Median()]


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


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_common_scale_of_all_updates_scales_the_result(factor: float) -> None:
    updates = drawn(0)
    scaled = (factor * np.array(updates)).tolist()
    for rule in EVERY:
        assert merged(rule, *scaled) == pytest.approx([factor * value for value in merged(rule, *updates)], rel=1e-9)


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
