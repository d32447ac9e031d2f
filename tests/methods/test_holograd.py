"""HoloGrad as a method: what it becomes in its limits, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientStep, ServerBackward, ServerStep
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.methods import FedSGD
from tests.methods.replicas import SIZE, SIZES, Messages, holograd
from tests.tiny import Recorder, Rows, build, differing, fit, furthest, network, rows, sgd, whole


@pytest.mark.parametrize(("projection", "topology"), [("grad", "shared"), ("grad", "partitioned"), ("jvp", "shared")])
def test_with_as_many_orthonormal_directions_as_parameters_it_is_fedsgd(projection: str, topology: str) -> None:
    options = {"server_optimizer": sgd(0.1, 0.9), "persist_server_optimizer": True, "participants": 3}
    exact = {"num_scalars": SIZE, "directions": "orthogonal", "projection": projection, "topology": topology}
    found = []
    for dtype in (torch.float64, torch.float32):
        data = rows(SIZES, dtype=dtype)
        one = fit(holograd(net=network(dtype=dtype), **exact, **options), data, 2)
        other = fit(build(FedSGD, network(dtype=dtype), **options), data, 2)
        found.append(furthest(whole(one), whole(other)))
    assert found[0] < 1e-12
    assert found[1] < 1e-5


def test_the_estimate_is_that_of_the_weighted_mean_gradient() -> None:
    """Shared directions and a plain mean: the same scalars as those of FedSGD's gradient."""
    gradients = []

    class Mean(Recorder):
        def on_server_backward(self, module: Any, event: ServerBackward) -> None:
            halves = (module.client_half, module.server_half)
            gradients.append(torch.cat([p.grad.flatten() for half in halves for p in half.parameters()]))

    fit(build(FedSGD), rows(SIZES), 1, [Mean()])
    seen = Messages()
    method = holograd(scale="unbiased")
    fit(method, rows(SIZES), 1, [seen])
    directions = seen.sent[0][0].directions
    direct = SIZE / 40 * directions.combine(directions.project(gradients[0][None])[0])
    assert (seen.estimates[0] - direct).norm() / direct.norm() < 1e-6


@pytest.mark.parametrize("rule", ["trimmed_mean", "median"])
def test_robust_rules_leave_identical_clients_alone(rule: Any) -> None:
    data = rows((6,), dtype=torch.float64)
    x, y = data.population.x.repeat(4, 1), data.population.y.repeat(4)
    copies = Rows(x, y, [range(6 * i, 6 * i + 6) for i in range(4)])
    states = [
        whole(fit(holograd(net=network(dtype=torch.float64), robust=Robust(each, 0.25)), copies))
        for each in ("mean", rule)
    ]
    assert furthest(*states) < 1e-12


def test_forward_mode_is_the_gradient_with_dropout_and_batch_norm_too() -> None:
    """One round: the next one's directions are drawn from a digest of the weights, of which every bit counts."""
    ways = ("grad", "jvp", "fd")
    exact, forward, coarse = (
        whole(fit(holograd(net=network(0.3, norm=True), projection=way), rows(SIZES))) for way in ways
    )
    assert furthest(exact, forward) < 1e-6
    assert exact["bn1.num_batches_tracked"] == forward["bn1.num_batches_tracked"] == 1
    assert 1e-6 < furthest(exact, coarse) < 0.1


def test_a_round_is_one_server_step_and_no_client_step() -> None:
    seen = Messages()
    fit(holograd(), rows(SIZES), 2, [seen])
    assert seen.count(ClientStep) == 0
    assert len(seen.of(ServerBackward)) == len(seen.messages) == 2
    assert [len(sent) for sent in seen.sent] == [4, 4]
    assert seen.count(ServerStep) == 2


def test_frozen_parameters_stay_out_of_the_vector() -> None:
    net = network()
    net.fc1.weight.requires_grad_(False)
    seen = Messages()
    after = whole(fit(holograd(net=net), rows(SIZES), 1, [seen]))
    assert differing(after, dict(network().state_dict())) == sorted({*after} - {"fc1.weight"})
    assert seen.sent[0][0].directions.size == SIZE - 48


def test_batch_norm_networks_move_their_buffers() -> None:
    method = fit(holograd(net=network(norm=True)), rows(SIZES), 2)
    assert isinstance(method.client_half, nn.Module)
    assert method.client_half.state_dict()["bn1.num_batches_tracked"] == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no scalars": ({"num_scalars": 0}, "num_scalars=0"),
    "kind": ({"directions": "x"}, "directions='x'"),
    "scale": ({"scale": "x"}, "scale='x'"),
    "topology": ({"topology": "x"}, "topology='x'"),
    "projection": ({"projection": "x"}, "projection='x'"),
    "robust and partitioned": ({"topology": "partitioned", "robust": Robust("median")}, "robust.rule='median'"),
    "momentum alone": ({"basis": BasisChoice("momentum"), "num_scalars": 16}, "num_scalars=16"),
    "subspace alone": ({"basis": BasisChoice("subspace", rank=32), "num_scalars": 40}, "num_scalars=40"),
    "more orthogonal directions than parameters": ({"directions": "orthogonal", "num_scalars": 152}, "num_scalars=152"),
    "a basis as large as the network": (
        {"basis": BasisChoice("subspace", rank=151), "num_scalars": 200}, "basis.rank=151",
    ),
    "liars": ({"byzantine": Byzantine(0.2, "inner_product"), "topology": "partitioned"}, "byzantine.attack="),
    "synchronisation": ({"synchronisation": "x"}, "synchronisation='x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_in_one_line(case: str) -> None:
    options, named = WRONG[case]
    with pytest.raises(ConfigError, match=re.escape(named) + r".* is not allowed: ") as refusal:
        fit(holograd(**options), rows(SIZES))
    assert "\n" not in str(refusal.value)
