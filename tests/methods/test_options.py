"""Settings that cannot work are refused in one line that names key, value and what is allowed."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
from torch import nn

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientBackward, ServerBackward
from lightning_sfl.methods import SFL, SFLV1, FedAvg, FedSGD, HoloGrad, MiniBatchSFL, SplitLearning, SplitMethod
from tests.every_method import FIXED, METHODS
from tests.tiny import Recorder, build, differing, fit, network, rows, sgd, whole

BAD: list[tuple[str, Any]] = [
    ("participants", 0), ("batch_size", 0), ("batch_size", -3), ("local_epochs", 0), ("local_steps", 0),
    ("client_clip", 0.0), ("client_clip", math.nan), ("client_clip", math.inf), ("server_clip", -1.0), ("seed", -1),
    ("seed", 2**63),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: ") as refusal:
        build(SFL, **{key: value})
    assert "\n" not in str(refusal.value)


def test_choices() -> None:
    with pytest.raises(ConfigError, match="client_gradient_scale='sum' is not allowed: one of"):
        build(MiniBatchSFL, client_gradient_scale="sum")


@pytest.mark.parametrize(("cls", "key"), [(FedAvg, "server_clip"), (FedSGD, "batch_size"), (FedSGD, "local_epochs")])
def test_options_that_a_method_fixes_are_no_options(cls: type[SplitMethod], key: str) -> None:
    with pytest.raises(TypeError, match=key):
        cls(nn.Sequential(), "fc1", **{key: 1})


@pytest.mark.parametrize("cls", METHODS)
def test_seeds_and_cut_are_taken_as_given(cls: type[SplitMethod]) -> None:
    method = build(cls, seed=2**63 - 1, cut_layer="fc1")
    fit(method)
    assert (method.seed, method.cut_layer) == (2**63 - 1, "fc1")


class Largest(Recorder):
    """The largest step of either side, at rate 1, seen as the norm of the gradient after clipping."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: dict[str, list[float]] = {"client": [], "server": []}

    def on_client_step(self, module: SplitMethod, event: Any) -> None:
        for turn in event.turns:
            halves = [turn.client_half, turn.server_half] if module.whole_on_client else [turn.client_half]
            self.norms["client"].append(norm(halves))

    def on_server_step(self, module: SplitMethod, event: Any) -> None:
        self.norms["server"].append(norm([event.server_half]))


def norm(halves: list[Any]) -> float:
    gradients = [p.grad for half in halves for p in half.parameters() if p.grad is not None]
    return sum(g.square().sum().item() for g in gradients) ** 0.5


SIDES = [(cls, side) for cls in METHODS for side in ("client", "server") if f"{side}_clip" not in FIXED.get(cls, ())]


@pytest.mark.parametrize(("cls", "side"), [pair for pair in SIDES if pair[0] not in (FedSGD, HoloGrad)])
def test_clipping_bounds_every_step_of_its_side(cls: type[SplitMethod], side: str) -> None:
    free, bound = Largest(), Largest()
    fit(build(cls, batch_size=4), rows(), callbacks=[free])
    fit(build(cls, batch_size=4, **{f"{side}_clip": 0.05}), rows(), callbacks=[bound])
    assert max(free.norms[side]) > 0.09
    assert max(bound.norms[side]) == pytest.approx(0.05, rel=1e-3)
    other = "server" if side == "client" else "client"
    assert not bound.norms[other] or max(bound.norms[other]) > 0.06


def test_each_clients_norm_is_its_own() -> None:
    """One client's large gradient must not shrink its neighbours' steps."""
    seen = Largest()
    fit(build(SFLV1, batch_size=None, client_clip=0.05, client_optimizer=sgd()), rows((3, 3, 3)), callbacks=[seen])
    assert seen.norms["client"] == pytest.approx([0.05] * 3, rel=1e-3)


def test_watchers_see_gradients_before_they_are_clipped() -> None:
    norms: list[float] = []

    class Before(Recorder):
        def on_client_backward(self, module: SplitMethod, event: ClientBackward) -> None:
            norms.append(norm([event.turns[0].client_half]))

        def on_server_backward(self, module: SplitMethod, event: ServerBackward) -> None:
            norms.append(norm([event.server_half]))

    fit(build(SFL, client_clip=1e-3, server_clip=1e-3), rows(), callbacks=[Before()])
    assert min(norms) > 1e-2


def test_a_client_half_with_nothing_to_train_is_refused() -> None:
    net = nn.Sequential(OrderedDict(flatten=nn.Flatten(), head=nn.Linear(6, 4)))
    with pytest.raises(ConfigError, match="cut_layer='flatten' is not allowed"):
        fit(build(SFL, net, "flatten"))


def test_a_frozen_layer_stays() -> None:
    net = network()
    net.fc1.weight.requires_grad_(False)
    after = whole(fit(build(SplitLearning, net), rows()))
    assert differing(after, dict(network().state_dict())) == sorted({*after} - {"fc1.weight"})
