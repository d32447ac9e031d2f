"""`client_engine: stacked` trains what the loop trains, for every method in which several clients step at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import SFLV1, FedAvg, HoloGrad, SplitMethod
from tests.every_method import METHODS, rich_of
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, whole

SIZES = (5, 4, 9, 13)
TOGETHER = [method for method in METHODS if not method.one_at_a_time]
ALONE = [method for method in METHODS if method.one_at_a_time]


def trained(cls: type[SplitMethod], engine: str, callbacks: Any = (), rounds: int = 3, **extra: Any) -> SplitMethod:
    options = {"participants": 4, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "client_clip": 0.5, **extra}
    method = build(cls, network(dtype=torch.float64), client_engine=engine, **{**options, **rich_of(cls)})
    return fit(method, rows(SIZES, dtype=torch.float64), rounds=rounds, callbacks=callbacks)


@pytest.mark.parametrize("cls", TOGETHER)
def test_stacked_trains_what_the_loop_trains(cls: type[SplitMethod]) -> None:
    loop, stacked = Recorder(), Recorder()
    rounds = 1 if cls is HoloGrad else 3  # its directions follow from the very bits of the weights
    states = [whole(trained(cls, name, [each], rounds)) for name, each in (("loop", loop), ("stacked", stacked))]
    assert furthest(*states) < 1e-10
    assert loop.traffic_bytes == stacked.traffic_bytes
    assert [type(event) for event in loop.events] == [type(event) for event in stacked.events]
    assert loop.losses == pytest.approx(stacked.losses, abs=1e-10)


@pytest.mark.parametrize("cls", TOGETHER)
def test_stacked_repeats_bit_for_bit(cls: type[SplitMethod]) -> None:
    assert not differing(whole(trained(cls, "stacked")), whole(trained(cls, "stacked")))


def test_stacked_is_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*ignored: Any) -> None:
        raise AssertionError("stacked")

    monkeypatch.setattr("lightning_sfl.core.stacked.Stacked.forward", refuse)
    trained(FedAvg, "loop")
    with pytest.raises(AssertionError, match="stacked"):
        trained(FedAvg, "stacked")


def test_v1_is_fedavg_bit_for_bit_when_both_are_stacked() -> None:
    one, other = (
        whole(trained(cls, "stacked", server_optimizer=sgd(0.1, 0.9), client_clip=None)) for cls in (SFLV1, FedAvg)
    )
    assert not differing(one, other)


@pytest.mark.parametrize("cls", ALONE)
def test_where_one_client_steps_at_a_time_there_is_nothing_to_stack(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match=r"loop, since in .* one client steps at a time"):
        build(cls, client_engine="stacked")


@pytest.mark.parametrize(("net", "layer"), [({"dropout": 0.1}, "Dropout"), ({"norm": True}, "BatchNorm1d")])
def test_a_network_that_cannot_be_stacked_is_refused_before_training(net: dict[str, Any], layer: str) -> None:
    with pytest.raises(ConfigError, match=f"client_engine='stacked' is not allowed: .*is {layer}"):
        fit(build(FedAvg, network(**net), client_engine="stacked"))


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="client_engine='vmap' is not allowed: loop or stacked"):
        build(FedAvg, client_engine="vmap")
