"""With its dynamics matched, a method becomes another: bitwise, or to rounding where gradients are summed in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.core.replay import Replay
from lightning_sfl.methods import (
    GAS,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    SplitLearning,
    SplitMethod,
)
from tests.tiny import build, differing, fit, furthest, network, rows, sgd, whole

State = dict[str, Tensor]
MOMENTUM = {"client_optimizer": sgd(0.05, 0.9), "server_optimizer": sgd(0.05, 0.9)}
EQUAL, RAGGED = (8, 8, 8), (5, 4, 9)
OFF: dict[type[SplitMethod], dict[str, Any]] = {
    USFL: {"balancing": Balancing("none")},
    Mix2SFL: {"smashmix": SmashMix(ratio=0.0), "gradmix": GradMix(phi=0.0)},
    MultiSFL: {
        "replay": Replay(assistants=0), "persist_client_optimizer": False, "persist_server_optimizer": False,
        "client_order": "sorted",
    },
}  # fmt: skip


def run(cls: type[SplitMethod], sizes: tuple[int, ...], matched: dict[str, Any] | None = None, **options: Any) -> State:
    net = network(dtype=torch.float64, **options.pop("net", {}))
    options = {"batch_size": 4, **MOMENTUM, **OFF.get(cls, {}), **options}
    method = build(cls, net, dynamics=Dynamics(**(matched or {})), **options)
    return whole(fit(method, rows(sizes, dtype=torch.float64), 3))


Pair = tuple[Callable[[], State], Callable[[], State]]
RICH = {"net": {"dropout": 0.2, "norm": True}}
BITWISE: dict[str, Pair] = {
    "split learning whose clients start alike is SFL-V2": (
        lambda: run(SplitLearning, RAGGED, {"start": "merged"}, **RICH),
        lambda: run(SFLV2, RAGGED, **RICH),
    ),
    "MiniBatch-SFL with a step for every upload is SFL": (
        lambda: run(MiniBatchSFL, EQUAL, {"server_steps": 6}, **RICH),
        lambda: run(SFL, EQUAL, **RICH),
    ),
    "as many steps as there are uploads is SFL": (
        lambda: run(SFL, RAGGED, {"server_steps": 99}, **RICH),
        lambda: run(SFL, RAGGED, **RICH),
    ),
    "SFL-V1 whose copies step with every upload is SFL-V1": (
        lambda: run(SFLV1, EQUAL, {"server_steps": 2}, **RICH),
        lambda: run(SFLV1, EQUAL, **RICH),
    ),
    "MultiSFL without replay whose branches start alike is SFL-V1": (
        lambda: run(MultiSFL, EQUAL, {"start": "merged"}, **RICH),
        lambda: run(SFLV1, EQUAL, weighting="uniform", **RICH),
    ),
    "methods that start alike anyway": (
        lambda: run(SFL, RAGGED, {"start": "merged"}, **RICH),
        lambda: run(SFL, RAGGED, **RICH),
    ),
    "SFL is at the scale of the own batch": (
        lambda: run(SFL, RAGGED, {"client_scale": "own"}, **RICH),
        lambda: run(SFL, RAGGED, **RICH),
    ),
    "GAS with six steps a round is GAS with a buffer of one": (
        lambda: run(GAS, EQUAL, {"server_steps": 6}, participation="per_round"),
        lambda: run(GAS, EQUAL, activation_buffer=1, participation="per_round"),
    ),
    "GAS with two steps a round is GAS with a buffer of three": (
        lambda: run(GAS, EQUAL, {"server_steps": 2}, participation="per_round"),
        lambda: run(GAS, EQUAL, activation_buffer=3, participation="per_round"),
    ),
}
CLOSE: dict[str, Pair] = {
    "SFL with one step a sweep is MiniBatch-SFL": (
        lambda: run(SFL, EQUAL, {"server_steps": 2}),
        lambda: run(MiniBatchSFL, EQUAL),
    ),
    "SFL with one step a sweep at joint scale is MiniBatch-SFL that sends slices": (
        lambda: run(SFL, EQUAL, {"server_steps": 2, "client_scale": "joint"}),
        lambda: run(MiniBatchSFL, EQUAL, client_gradient_scale="concat_mean"),
    ),
    "SFL with one step a sweep at joint scale is USFL without balance": (
        lambda: run(SFL, EQUAL, {"server_steps": 2, "client_scale": "joint"}),
        lambda: run(USFL, EQUAL),
    ),
    "SFL with one step a sweep at joint scale is Mix2SFL without mixes": (
        lambda: run(SFL, EQUAL, {"server_steps": 2, "client_scale": "joint"}),
        lambda: run(Mix2SFL, EQUAL),
    ),
    "MiniBatch-SFL at joint scale sends slices": (
        lambda: run(MiniBatchSFL, RAGGED, {"client_scale": "joint"}),
        lambda: run(MiniBatchSFL, RAGGED, client_gradient_scale="concat_mean"),
    ),
    "MiniBatch-SFL of slices at own scale is MiniBatch-SFL": (
        lambda: run(MiniBatchSFL, RAGGED, {"client_scale": "own"}, client_gradient_scale="concat_mean"),
        lambda: run(MiniBatchSFL, RAGGED),
    ),
    "USFL at own scale is MiniBatch-SFL": (
        lambda: run(USFL, EQUAL, {"client_scale": "own"}),
        lambda: run(MiniBatchSFL, EQUAL),
    ),
    "USFL with everything matched to SFL is SFL": (
        lambda: run(USFL, EQUAL, {"client_scale": "own", "server_steps": 6, "start": "merged"}),
        lambda: run(SFL, EQUAL),
    ),
    "one step a round: the order of uploads no longer matters to the server": (
        lambda: run(SFL, RAGGED, {"server_steps": 1}),
        lambda: run(SFLV2, RAGGED, {"server_steps": 1}),
    ),
    "and nor does whether they come together": (
        lambda: run(MiniBatchSFL, RAGGED, {"server_steps": 1}),
        lambda: run(SFLV2, RAGGED, {"server_steps": 1}),
    ),
}


@pytest.mark.parametrize("pair", BITWISE.values(), ids=list(BITWISE))
def test_bitwise(pair: Pair) -> None:
    one, other = pair
    assert differing(one(), other()) == []


@pytest.mark.parametrize("pair", CLOSE.values(), ids=list(CLOSE))
def test_close(pair: Pair) -> None:
    one, other = pair
    assert furthest(one(), other()) < 1e-12


@pytest.mark.parametrize("cls", [SFL, SFLV1, USFL, MultiSFL, MiniBatchSFL])
def test_halves_run_in_one_stroke_are_matched_alike(cls: type[SplitMethod]) -> None:
    matched = {"client_scale": "own", "server_steps": 3, "start": "merged"}
    assert furthest(run(cls, RAGGED, matched), run(cls, RAGGED, matched, client_engine="stacked")) < 1e-12


DIFFERENT: dict[str, Pair] = {
    "scale": (lambda: run(SFL, EQUAL, {"client_scale": "joint"}), lambda: run(SFL, EQUAL)),
    "steps": (lambda: run(SFL, EQUAL, {"server_steps": 2}), lambda: run(SFL, EQUAL)),
    "start": (lambda: run(MultiSFL, EQUAL, {"start": "merged"}), lambda: run(MultiSFL, EQUAL)),
    "steps of copies": (lambda: run(SFLV1, EQUAL, {"server_steps": 1}), lambda: run(SFLV1, EQUAL)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=list(DIFFERENT))
def test_the_options_do_something(pair: Pair) -> None:
    one, other = pair
    assert furthest(one(), other()) > 1e-4
