"""What each client starts a round from, how ends are merged, and on whose order the result depends."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_sfl.core.events import ClientEnd, ClientStart, RoundStart, ServerStep
from lightning_sfl.methods import (
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    FedAvg,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    Mix2SFL,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import METHODS, PERSISTENT
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

FROM_GLOBAL = [SFL, SFLV1, SFLV2, MiniBatchSFL, USFL, Mix2SFL, FedAvg, FedSGD, HoloGrad]


class Globals(Recorder):
    """Also keeps the global client half at the start and the end of every round."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.momenta: list[tuple[int, int]] = []

    def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
        self.before.append(weights(event.client_half))
        sizes = [len(module.optimizer(role).optimizer.state) for role in module.roles]
        self.momenta.append((sizes[0], sizes[-1]))

    def on_round_end(self, module: SplitMethod, event: Any) -> None:
        self.after.append(weights(event.client_half))


def run(cls: type[SplitMethod], rounds: int = 3, net: nn.Module | None = None, **options: Any) -> Globals:
    recorder = Globals()
    optimizers = {"client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9)}
    fit(build(cls, net, **{"batch_size": 4, **optimizers, **options}), rows(), rounds, callbacks=[recorder])
    return recorder


@pytest.mark.parametrize("cls", FROM_GLOBAL)
def test_everybody_starts_from_the_global_half(cls: type[SplitMethod]) -> None:
    recorder = run(cls, net=network(norm=True))
    for event, start in zip(recorder.of(ClientStart), recorder.starts, strict=True):
        assert differing(start, recorder.before[event.round]) == []
    assert differing(recorder.before[0], recorder.before[1]) != []


def test_split_learning_relays() -> None:
    recorder = run(SplitLearning, net=network(norm=True))
    for index in range(3):
        assert differing(recorder.starts[3 * index], recorder.before[index]) == []
        assert differing(recorder.starts[3 * index + 1], recorder.ends[3 * index]) == []
        assert differing(recorder.starts[3 * index + 2], recorder.ends[3 * index + 1]) == []
        assert differing(recorder.after[index], recorder.ends[3 * index + 2]) == []


@pytest.mark.parametrize(
    ("weighting", "shares"),
    [("samples", (5, 4, 9)), ("uniform", (1, 1, 1)), ("rows", (5, 4, 9))],
)
@pytest.mark.parametrize("cls", [SFL, SFLV1, SFLV2, MiniBatchSFL, FedAvg])
def test_client_halves_are_averaged(cls: type[SplitMethod], weighting: str, shares: tuple[int, ...]) -> None:
    recorder = run(cls, rounds=1, net=network(norm=True), weighting=weighting)
    assert [event.weight / shares[event.client_id] for event in recorder.of(ClientEnd)] == [1, 1, 1]
    for name, merged in recorder.after[0].items():
        ends = [end[name] for end in recorder.ends]
        if merged.is_floating_point():
            wanted = sum(end.double() * share for end, share in zip(ends, shares, strict=True)) / sum(shares)
            torch.testing.assert_close(merged.double(), wanted, rtol=1e-6, atol=1e-6)
        else:
            assert merged.dtype == torch.int64
            assert merged.item() == max(end.item() for end in ends)


def test_rows_count_what_was_trained_on() -> None:
    recorder = run(SFL, rounds=1, weighting="rows", local_steps=3)
    assert [event.weight for event in recorder.of(ClientEnd)] == [4 + 1 + 4, 12, 9]


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in PERSISTENT])
def test_momentum_ends_with_the_round(cls: type[SplitMethod]) -> None:
    assert run(cls).momenta == [(0, 0)] * 3


@pytest.mark.parametrize("cls", [SFL, SFLV2, MiniBatchSFL, SplitLearning])
def test_the_servers_momentum_may_last(cls: type[SplitMethod]) -> None:
    assert run(cls, persist_server_optimizer=True).momenta == [(0, 0), (0, 4), (0, 4)]
    fresh, lasting = (trained(cls, momentum=0.9, persist_server_optimizer=persist) for persist in (False, True))
    assert differing(fresh, lasting) != []


def trained(cls: type[SplitMethod], momentum: float = 0.0, **options: Any) -> dict[str, torch.Tensor]:
    optimizers = {"client_optimizer": sgd(0.1, momentum), "server_optimizer": sgd(0.1, momentum)}
    net = network(dtype=torch.float64)
    return whole(fit(build(cls, net, batch_size=4, **optimizers, **options), rows(dtype=torch.float64), rounds=3))


@pytest.mark.parametrize("cls", METHODS)
def test_the_order_of_clients_matters_only_to_a_shared_server(cls: type[SplitMethod]) -> None:
    distance = furthest(trained(cls), trained(cls, client_order="shuffled"))
    if cls in (SplitLearning, SFL, SFLV2):
        assert distance > 1e-4
    elif cls in (SFLV1, FedAvg, FedSGD, HoloGrad, MiniBatchSFL, USFL):
        assert distance < 1e-12


@pytest.mark.parametrize(
    ("cls", "counter"), [(SFL, 12), (SFLV2, 12), (SplitLearning, 12), (MiniBatchSFL, 6), (SFLV1, 6)]
)
def test_server_batch_norm_counts_server_forwards(cls: type[SplitMethod], counter: int) -> None:
    method = build(cls, network(norm=True), batch_size=4, local_epochs=2)
    recorder = Recorder()
    fit(method, rows((6, 4, 10)), callbacks=[recorder])
    tracked = method.server_half.state_dict()["bn2.num_batches_tracked"]
    assert tracked.dtype == torch.int64
    assert tracked.item() == counter
    assert cls is SFLV1 or tracked.item() == recorder.count(ServerStep)
    relayed = cls is SplitLearning
    assert method.client_half.state_dict()["bn1.num_batches_tracked"].item() == (12 if relayed else 6)


def test_a_single_row_leaves_batch_norm_alone_on_both_sides() -> None:
    method = build(SFL, network(norm=True), "bn1", batch_size=4)
    fit(method, rows((5,)))
    assert method.client_half.state_dict()["bn1.num_batches_tracked"].item() == 1
    assert method.server_half.state_dict()["bn2.num_batches_tracked"].item() == 1


class Modes(L.Callback):
    """Whether the halves were in training mode at each server step."""

    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_server_step(self, module: SplitMethod, event: ServerStep) -> None:
        self.training.append(all(m.training for m in [*event.server_half.modules(), *module.slots.modules()]))


@pytest.mark.parametrize("cls", [SFL, SFLV1, MiniBatchSFL, SplitLearning])
def test_evaluation_between_rounds_does_not_freeze_the_halves(cls: type[SplitMethod]) -> None:
    modes = Modes()
    fit(build(cls, network(norm=True), batch_size=4), rows(), rounds=2, callbacks=[modes], limit_val_batches=1)
    assert modes.training
    assert all(modes.training)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("cls", METHODS)
def test_a_network_that_comes_in_evaluation_mode_is_trained_all_the_same(cls: type[SplitMethod]) -> None:
    one, other = (whole(fit(build(cls, network(0.2, norm=True).train(mode)), rows())) for mode in (True, False))
    assert differing(one, other) == []
