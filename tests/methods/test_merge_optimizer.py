"""FedOpt: the merged update as a gradient, where that is the plain merge, and what outlives a round and a resume."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.core.adaptive import FedAdam, FedYogi
from lightning_sfl.core.aggregators import Median
from lightning_sfl.core.errors import CheckpointError, ConfigError
from lightning_sfl.methods import (
    CFL,
    GAS,
    IFCA,
    SFL,
    SFLV1,
    Centralized,
    FedAsync,
    FedAvg,
    FedSGD,
    HoloGrad,
    MultiSFL,
    Reptile,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import METHODS
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

SIZES = (5, 4, 9, 2)
REFUSING = (FedAsync, SplitLearning, Centralized, MultiSFL, FedSGD, HoloGrad, Reptile, IFCA, CFL)
Factory = Callable[[Any], torch.optim.Optimizer]


def run(cls: type[SplitMethod], factory: Factory | None, rounds: int = 3, **options: Any) -> dict[str, Any]:
    net = network(norm=options.pop("norm", True))
    return whole(fit(build(cls, net, merge_optimizer=factory, **{"batch_size": 4, **options}), rows(SIZES), rounds))


@pytest.mark.parametrize("cls", [method for method in METHODS if method not in REFUSING])
def test_a_plain_step_of_rate_one_is_the_plain_merge(cls: type[SplitMethod]) -> None:
    plain = run(cls, None)
    assert furthest(run(cls, sgd(1.0)), plain) < 1e-5
    assert furthest(run(cls, sgd(0.5)), plain) > 1e-4


def test_rate_zero_moves_nothing_but_buffers() -> None:
    after, before = run(FedAvg, sgd(0.0)), dict(network(norm=True).state_dict())
    assert {name.rpartition(".")[2] for name in differing(after, before)} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_momentum_on_fedavg_of_one_full_batch_is_fedsgd_with_momentum() -> None:
    """Lengths differ by the clients' rate, which both momenta carry along."""
    options = {"batch_size": None, "norm": False, "client_optimizer": sgd(0.1), "server_optimizer": sgd(0.1, 0.9)}
    averaged = run(FedAvg, sgd(1.0, 0.9), 4, **options)
    assert furthest(averaged, run(FedSGD, None, 4, persist_server_optimizer=True, **options)) < 1e-5
    assert furthest(averaged, run(FedSGD, None, 4, **options)) > 1e-3


def test_momentum_by_hand() -> None:
    """w <- w - b, b <- 0.9 b + (w - average of what was handed in)."""
    recorder, merged = Recorder(), []

    class Keep(Recorder):
        def on_round_end(self, module: SplitMethod, event: Any) -> None:
            merged.append(weights(event.client_half))

    fit(build(SFL, merge_optimizer=sgd(1.0, 0.9), weighting="uniform"), rows(SIZES), 3, [recorder, Keep()])
    w, b = dict(network().state_dict())["fc1.weight"], torch.zeros(8, 6)
    for index in range(3):
        mean = torch.stack([end["fc1.weight"] for end in recorder.ends[4 * index : 4 * index + 4]]).mean(dim=0)
        b = 0.9 * b + (w - mean)
        w = w - b
        torch.testing.assert_close(merged[index]["fc1.weight"], w)


def test_a_frozen_layer_stays() -> None:
    net = network()
    net.fc1.weight.requires_grad_(False)
    after = whole(fit(build(FedAvg, net, merge_optimizer=FedYogi), rows(SIZES), 2))
    assert differing(after, dict(network().state_dict())) == sorted({*after} - {"fc1.weight"})


def test_splitfed_v1_is_fedavg_with_it_too() -> None:
    assert differing(run(SFLV1, FedAdam), run(FedAvg, FedAdam)) == []
    assert differing(run(SFLV1, FedAdam, aggregator=Median()), run(FedAvg, FedAdam, aggregator=Median())) == []


def trained(
    cls: type[SplitMethod], factory: Factory | None, rounds: int, keep: Path | None, resume: Path | None = None
) -> Any:
    options = {"participants": 3, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9)}
    method = build(cls, network(0.2, True), merge_optimizer=factory, **options)
    watchers = [ModelCheckpoint(keep, filename="{epoch}", save_top_k=-1)] if keep else []
    return whole(fit(method, rows(SIZES), rounds, watchers, resume, enable_checkpointing=keep is not None))


@pytest.mark.parametrize("cls", [SFL, GAS])
@pytest.mark.parametrize("factory", [sgd(0.7, 0.9), FedYogi, torch.optim.Adam], ids=["momentum", "FedYogi", "Adam"])
def test_its_state_outlives_rounds_and_a_resume(cls: type[SplitMethod], factory: Factory, tmp_path: Path) -> None:
    wanted = trained(cls, factory, 4, tmp_path)
    assert differing(trained(cls, factory, 4, tmp_path, tmp_path / "epoch=1.ckpt"), wanted) == []
    content = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert content["lightning_sfl"]["memory"]["merge_optimizer"]
    content["lightning_sfl"]["memory"]["merge_optimizer"] = {}
    torch.save(content, tmp_path / "forgetful.ckpt")
    assert differing(trained(cls, factory, 4, tmp_path, tmp_path / "forgetful.ckpt"), wanted) != []


def test_watching_changes_nothing() -> None:
    watched = fit(build(SFL, merge_optimizer=FedAdam), rows(SIZES), 3, [Recorder()])
    assert differing(whole(watched), run(SFL, FedAdam, norm=False, batch_size=10)) == []


@pytest.mark.parametrize(("saved", "used"), [(None, FedAdam), (FedAdam, FedYogi), (FedAdam, None)])
def test_another_one_does_not_take_over(saved: Factory | None, used: Factory | None, tmp_path: Path) -> None:
    trained(SFL, saved, 1, tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint has merge_optimizer=") as refusal:
        trained(SFL, used, 2, tmp_path, tmp_path / "epoch=0.ckpt")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("cls", REFUSING)
def test_where_it_has_no_meaning(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match=f"merge_optimizer='an optimizer' is not allowed: null in {cls.__name__}, as"):
        build(cls, merge_optimizer=sgd(1.0))


@pytest.mark.parametrize("factory", [partial(FedAdam, tau=0.0), sgd(-1.0), sgd(float("nan")), torch.optim.LBFGS])
def test_settings_that_cannot_work(factory: Factory) -> None:
    recorder = Recorder()
    with pytest.raises(ConfigError, match="merge_optimizer") as refusal:
        fit(build(SFL, merge_optimizer=factory), rows(SIZES), callbacks=[recorder])
    assert "\n" not in str(refusal.value)
    assert recorder.events == []
