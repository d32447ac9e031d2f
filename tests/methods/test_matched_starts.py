"""Matched dynamics: where clients start, and what has no meaning."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from torch import Tensor

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart
from lightning_sfl.methods import CFL, GAS, IFCA, MultiSFL, SplitLearning, SplitMethod
from tests.every_method import ASYNCHRONOUS, CUT_METHODS, METHODS, rich_of
from tests.methods.matched import recorded
from tests.tiny import Recorder, build, differing, fit, network, rows, sgd, weights, whole

UNCUT = [cls for cls in METHODS if cls not in CUT_METHODS]


class Starts(Recorder):
    """The merged client half at the start of each round, and as it is when each client starts."""

    def __init__(self) -> None:
        super().__init__()
        self.merged: list[dict[str, Tensor]] = []
        self.then: list[dict[str, Tensor]] = []

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.merged.append(weights(event.client_half))

    def on_client_start(self, module: SplitMethod, event: ClientStart) -> None:
        super().on_client_start(module, event)
        self.then.append(weights(module.client_half))


def starts(cls: type[SplitMethod], **matched: Any) -> list[bool]:
    """Whether each client of three rounds started from the merged half."""
    seen = Starts()
    options = {"batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "participants": 3, **rich_of(cls)}
    fit(build(cls, network(norm=True), dynamics=Dynamics(**matched), **options), rows((5, 4, 9, 6)), 3, [seen])
    return [differing(*each) == [] for each in zip(seen.starts, seen.then, strict=True)]


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in (CFL, IFCA)])  # these refuse that
def test_everybody_starts_from_the_merged_half(cls: type[SplitMethod]) -> None:
    assert all(starts(cls, start="merged"))
    assert all(starts(cls)) is (cls not in (SplitLearning, MultiSFL, *ASYNCHRONOUS))


def test_a_branch_starts_with_both_its_halves_from_the_master() -> None:
    found: list[list[str]] = []

    class Servers(L.Callback):
        def on_client_start(self, module: SplitMethod, event: ClientStart) -> None:
            found.append(differing(weights(event.server_half), weights(module.server_half)))

    fit(build(MultiSFL, batch_size=4, dynamics=Dynamics(start="merged")), rows(), 3, [Servers()])
    assert found == [[]] * 9


def test_who_is_brought_back_is_sent_the_weights_again() -> None:
    """A client that stays in its slot over the end of a round gets the merged half, which costs a transfer."""
    free, matched = (
        recorded(GAS, (9, 9, 9, 9, 9), 4, participants=3, model_buffer=1, matched=m) for m in ({}, {"start": "merged"})
    )
    moved = [sum(t["weights", "down"] for t in each.traffic_bytes) for each in (free, matched)]
    half = 4 * (6 * 8 + 8)
    stayed = len(matched.of(ClientStart)) - moved[0] // half
    assert stayed > 0
    assert moved[1] - moved[0] == stayed * half


def test_who_is_brought_back_keeps_the_layers_of_its_own() -> None:
    """Batch-norm layers that a client has for itself are as it left them; the rest is the merged half."""
    seen, options = Starts(), {"participants": 3, "model_buffer": 1, "bn_buffers": "local", "batch_size": 4}
    method = build(GAS, network(norm=True), dynamics=Dynamics(start="merged"), **options)
    fit(method, rows((9, 9, 9, 9, 9)), 4, [seen])
    left = {(e.round, e.client_id): end for e, end in zip(seen.of(ClientEnd), seen.ends, strict=True) if not e.finished}
    stayed = 0
    for event, start in zip(seen.of(ClientStart), seen.starts, strict=True):
        before = left.get((event.round - 1, event.client_id))
        if before is not None:
            stayed += 1
            own = {name for name in start if "bn1" in name}
            assert not own & {*differing(start, before)}
            assert {*differing(start, seen.merged[event.round])} <= own
    assert stayed > 2


@pytest.mark.parametrize("cls", UNCUT)
@pytest.mark.parametrize("matched", [{"client_scale": "own"}, {"server_steps": 3}])
def test_methods_without_a_server_refuse_in_one_line(cls: type[SplitMethod], matched: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(cls, dynamics=Dynamics(**matched))
    ((key, value),) = matched.items()
    left = getattr(Dynamics(), key)
    assert str(refusal.value) == (
        f"dynamics.{key}={value!r} is not allowed: only {left}: in {cls.__name__} no server answers uploads, "
        "so there is nothing to match"
    )


@pytest.mark.parametrize("cls", METHODS)
def test_left_to_the_method_nothing_changes(cls: type[SplitMethod]) -> None:
    def trained(**options: Any) -> dict[str, Tensor]:
        return whole(fit(build(cls, batch_size=4, participants=3, **options, **rich_of(cls)), rows(), 2))

    assert differing(trained(), trained(dynamics=Dynamics())) == []
