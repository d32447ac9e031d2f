"""FedSGD: one server step on the averaged gradient, over both halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.events import ClientEnd, ClientStep, RoundEnd, ServerBackward
from lightning_sfl.core.state import gradients_of
from lightning_sfl.methods import FedSGD, SplitMethod
from tests.tiny import Recorder, build, fit, furthest, network, rows, sgd, whole


class Norms(Recorder):
    """The norm of what the server's step is about to subtract, at rate 1: weights before minus weights after."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, torch.Tensor] = {}
        self.moved = 0.0

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.before = whole(module)

    def on_round_end(self, module: SplitMethod, event: RoundEnd) -> None:
        after = whole(module)
        self.moved = sum((after[name] - self.before[name]).square().sum().item() for name in after) ** 0.5


def moved(**options: Any) -> float:
    norms = Norms()
    fit(build(FedSGD, server_optimizer=sgd(1.0), **options), rows(), callbacks=[norms])
    return norms.moved


def test_the_bound_holds_for_the_whole_step() -> None:
    assert moved() > 0.2
    assert moved(server_clip=0.2) == pytest.approx(0.2, rel=1e-4)
    assert moved(server_clip=0.01) == pytest.approx(0.01, rel=1e-4)


def test_nobody_steps_but_the_server() -> None:
    recorder = Recorder()
    fit(build(FedSGD), rows(), rounds=2, callbacks=[recorder])
    assert recorder.count(ClientStep) == 0
    assert [event.steps for event in recorder.of(ClientEnd)] == [0] * 6
    assert [event.client_ids for event in recorder.of(ServerBackward)] == [(0, 1, 2)] * 2
    assert [event.rows for event in recorder.of(ServerBackward)] == [18, 18]


def test_buffers_are_averaged_and_sent() -> None:
    recorder = Recorder()
    method = build(FedSGD, network(norm=True))
    fit(method, rows((6, 4, 10)), callbacks=[recorder])
    means = [end["bn1.running_mean"] for end in recorder.ends]
    wanted = sum(mean * n for mean, n in zip(means, (6, 4, 10), strict=True)) / 20
    torch.testing.assert_close(method.client_half.state_dict()["bn1.running_mean"], wanted)
    assert method.client_half.state_dict()["bn1.num_batches_tracked"].item() == 1
    parameter_bytes = 4 * (56 + 16 + 63 + 14 + 32)
    buffer_bytes = 4 * (16 + 14) + 2 * 8
    assert recorder.traffic_bytes[0] == {
        ("weights", "down"): 3 * (parameter_bytes + buffer_bytes),
        ("gradients", "up"): 3 * parameter_bytes,
        ("weights", "up"): 3 * buffer_bytes,
    }


def test_weights_of_clients_weigh_gradients() -> None:
    """A client of no weight in samples does not exist; with uniform weights the small client counts as much."""
    by_samples, uniform = (whole(fit(build(FedSGD, weighting=w), rows((1, 30)))) for w in ("samples", "uniform"))
    assert furthest(by_samples, uniform) > 1e-3


class Nan(Recorder):
    """Turns a gradient of one client's lower half into NaN, which no loss shows."""

    def on_client_end(self, module: SplitMethod, event: ClientEnd) -> None:
        if event.client_id == 1:
            gradients_of(event.client_half)["fc1.weight"].fill_(float("nan"))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    method = build(FedSGD)
    with pytest.raises(NonFiniteError, match=r"a gradient is not finite in fedsgd, round 0, clients 0, 1, 2"):
        fit(method, rows(), callbacks=[Nan()])
    assert furthest(whole(method), dict(network().state_dict())) == 0
