"""What the family of FedAvg does where nothing is said: the values of the papers, or of their released code."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import pytest

from lightning_sfl.core import oort
from lightning_sfl.core.adaptive import FedAdam, FedYogi
from lightning_sfl.core.aggregators import CosineWeighted, DeviationClipping, NormClipping
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.effort import Decay, EpsilonGreedy, Plateau, UpperConfidence
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.power_of_choice import PowerOfChoice
from lightning_sfl.core.privacy import CentralDP, LocalDP, SecureAggregation, central
from lightning_sfl.core.privacy.sample import SampleDP
from lightning_sfl.core.staleness import Hinge, Polynomial
from lightning_sfl.methods import CFL, FedAsync, FedBuff

MUST = Parameter.empty  # has no value of its own
DEFAULTS: list[tuple[Any, dict[str, Any]]] = [
    (CosineWeighted, {"power": 1, "temperature": None, "reference": "mean"}),
    (DeviationClipping, {"factor": 2, "threshold": None}),
    (NormClipping, {"factor": 2, "threshold": None}),
    (FedAdam, {"beta1": 0.9, "beta2": 0.99}),
    (FedYogi, {"beta1": 0.9, "beta2": 0.99}),
    (Polynomial, {"power": 0.5}),
    (Hinge, {"slope": 10, "tolerated": 4}),
    (FedAsync, {"mixing": 0.6}),
    (FedBuff, {"normalise": False}),
    (CFL, {"eps1": 0.4, "eps2": 1.6}),
    (Attendance, {"availability": 1, "trace": None, "overcommit": 1, "deadline_s": None, "quorum": 1}),
    (Decay, {"epochs_factor": 0.97, "least_epochs": 1, "batch_factor": 1}),
    (Plateau, {"patience": 5, "least_epochs": 1}),
    (EpsilonGreedy, {"arms": (1, 2, 5, 10)}),
    (UpperConfidence, {"arms": (1, 2, 5, 10)}),
    (Oort, {"exploration": 0.9, "least_exploration": 0.3, "speed_penalty": 2, "fast_percent": 30}),
    (Oort, {"cut_off": 0.95, "clip": 0.9, "min_rows": 1, "blacklist_after": None}),
    (PowerOfChoice, {"candidates": None}),
    (CentralDP, {"clip": MUST, "noise_multiplier": MUST, "delta": 1e-5}),
    (CentralDP, {"adaptive": False, "quantile": 0.5, "rate": 0.2, "count_noise": None}),
    (LocalDP, {"clip": MUST, "noise_multiplier": None, "epsilon": None, "delta": 1e-5}),
    (SampleDP, {"clip": MUST, "noise_multiplier": MUST, "delta": 1e-5}),
    (SecureAggregation, {"value_range": 8, "levels": 2**22, "max_weight": 1000, "threshold": None, "drop_out": 0}),
]
CONSTANTS: list[tuple[Any, dict[str, float]]] = [
    (oort, {"PACER_STEP": 20, "PACER_PERCENT": 5, "STALLED": 0.1, "LEAPED": 5}),
    (oort, {"WINDOW": 5, "MOST_HELD": 10, "LEAST_RANGE": 1e-4, "BLACKLIST_SHARE": 0.3}),
    (central, {"COUNT_NOISE_SHARE": 1 / 20}),
]


def named(one: Any) -> str:
    """In the name of a test."""
    return "-".join(one) if isinstance(one, dict) else str(one.__name__).rpartition(".")[2]


@pytest.mark.parametrize(("of", "wanted"), DEFAULTS, ids=named)
def test_what_is_usual(of: type[Any], wanted: dict[str, Any]) -> None:
    found = signature(of).parameters
    assert {name: found[name].default for name in wanted} == wanted


@pytest.mark.parametrize(("of", "wanted"), CONSTANTS, ids=named)
def test_what_is_no_setting(of: Any, wanted: dict[str, float]) -> None:
    assert {name: getattr(of, name) for name in wanted} == wanted
