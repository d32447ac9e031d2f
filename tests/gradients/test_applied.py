"""What methods would apply at one state, against plain autograd on the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.applied_gradients import Applied, Weights, applied, reference
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.core.rounds import Plan, Work, plan_round
from lightning_sfl.gradient_states import own_gradients
from lightning_sfl.methods import (
    CFL,
    GAS,
    IFCA,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    Centralized,
    FedAvg,
    FedSGD,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    SplitLearning,
)
from tests.every_method import METHODS, rich_of
from tests.tiny import build, network, rows, sgd

SIZES = (5, 4, 9)
CLIENT = 2  # parameter tensors below the cut
DATA = rows(SIZES, dtype=torch.float64)
NET = network(dtype=torch.float64)
WEIGHTS = Weights(
    {name: tensor.clone() for name, tensor in NET.state_dict().items() if name.startswith("fc1")},
    {name: tensor.clone() for name, tensor in NET.state_dict().items() if not name.startswith("fc1")},
)
PLAN = plan_round(0, 3, [0, 1, 2], DATA.population.rows, Work(4, 1, 1), "sorted")
BATCHES = [batches[0].rows for batches in PLAN.batches]
COUNTS = [len(batch) for batch in BATCHES]


def found(cls: Any, plan: Plan = PLAN, **options: Any) -> Applied:
    method = build(
        cls, network(dtype=torch.float64), **{"participants": 3, "client_optimizer": sgd(0.3, 0.9), **options}
    )
    return applied(method, DATA, WEIGHTS, plan)


def own(rows_: np.ndarray) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss on these rows, both halves."""
    x, y = DATA.population.take(rows_)
    whole = torch.autograd.grad(cross_entropy(NET(x), y), list(NET.parameters()))
    flat = [gradient.flatten() for gradient in whole]
    return torch.cat(flat[:CLIENT]), torch.cat(flat[CLIENT:])


def weighted(weights: Any, half: int) -> Tensor:
    total = sum(weights)
    return sum(w / total * own(batch)[half] for w, batch in zip(weights, BATCHES, strict=True))  # type: ignore[return-value]


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.norm()))


POOLED = np.concatenate(BATCHES)
EQUAL = [1, 1, 1]


def test_batches_are_unequal_so_that_weights_show() -> None:
    assert COUNTS == [4, 4, 4]
    assert SIZES != (4, 4, 4)


@pytest.mark.parametrize("cls", [FedAvg, FedSGD, SFLV1])
def test_averages_of_whole_networks_are_the_weighted_mean(cls: Any) -> None:
    one = found(cls)
    assert same(one.client, weighted(SIZES, 0))
    assert same(one.server, weighted(SIZES, 1))


@pytest.mark.parametrize("cls", [SFL, SFLV2])
def test_a_server_that_steps_for_each_client_applies_the_sum(cls: Any) -> None:
    one = found(cls)
    assert same(one.client, weighted(SIZES, 0))
    assert same(one.server, 3 * weighted(EQUAL, 1))
    assert (one.client_steps, one.server_steps) == (3, 3)


def test_a_relay_applies_the_sum_on_both_sides() -> None:
    one = found(SplitLearning)
    assert same(one.client, 3 * weighted(EQUAL, 0))
    assert same(one.server, 3 * weighted(EQUAL, 1))


def test_joint_steps() -> None:
    for one in (found(MiniBatchSFL), found(Centralized)):
        assert same(one.server, own(POOLED)[1])
        assert one.server_steps == 1
    assert same(found(MiniBatchSFL).client, weighted(SIZES, 0))
    assert same(found(MiniBatchSFL, client_gradient_scale="concat_mean").client, weighted(SIZES, 0) / 3)
    assert same(found(Centralized).client, own(POOLED)[0])


def test_usfl_divides_by_all_rows_unless_it_scales() -> None:
    small, large = found(USFL), found(USFL, scale_client_gradient=True)
    assert same(small.client, weighted(EQUAL, 0) / 3)
    assert same(large.client, weighted(EQUAL, 0))
    assert same(small.server, own(POOLED)[1])
    exchanged = found(USFL, gradient_shuffle=GradientShuffle("random"))
    assert not same(exchanged.client, small.client)
    assert same(exchanged.server, small.server)


def test_mix2sfl_without_mixing_is_a_joint_step_and_gradmix_changes_clients_only() -> None:
    plain = found(Mix2SFL, gradmix=GradMix(phi=0.0), smashmix=SmashMix(ratio=0.0))
    assert same(plain.client, weighted(EQUAL, 0) / 3)
    assert same(plain.server, own(POOLED)[1])
    mixed = found(Mix2SFL, gradmix=GradMix(phi=1.0), smashmix=SmashMix(ratio=0.0))
    assert same(mixed.server, plain.server)
    assert not same(mixed.client, plain.client)


@pytest.mark.parametrize("cls", [MultiSFL, GAS])
def test_persistent_methods_start_from_the_checkpoint_like_the_others(cls: Any) -> None:
    one = found(cls)
    assert same(one.client, weighted(EQUAL, 0))
    assert same(one.server, weighted(EQUAL, 1) if cls is MultiSFL else own(POOLED)[1])


def test_clients_own_gradients() -> None:
    one = found(SFL)
    for client, batch in enumerate(BATCHES):
        gradient, weight = one.own[client]
        assert same(gradient, own(batch)[0])
        assert weight == SIZES[client]


def test_disagreement_and_direction_of_the_clients_own_gradients() -> None:
    one, probe = found(SFL), own(np.arange(sum(SIZES)))[0]
    told = own_gradients(one, probe)
    shares = torch.tensor(SIZES).double() / sum(SIZES)
    rows_ = torch.stack([own(batch)[0] for batch in BATCHES])
    energy = float(shares @ rows_.square().sum(1))
    assert told["A_ratio"] == pytest.approx(1 - float((shares @ rows_).square().sum()) / energy, rel=1e-4)
    assert told["A_null"] == pytest.approx(1 - float(shares.square() @ rows_.square().sum(1)) / energy, rel=1e-4)
    cosines = rows_ @ probe / rows_.norm(dim=1) / probe.norm()
    assert told["client_C"] == pytest.approx(float(shares @ (1 - cosines)), rel=1e-4)
    assert own_gradients(one, None).keys() == {"A_ratio", "A_null"}
    assert own_gradients(found(FedSGD), probe) == {}


def test_more_local_steps_are_summed() -> None:
    plan = plan_round(0, 3, [0, 1, 2], DATA.population.rows, Work(4, 1, 2), "sorted")
    sums = [sum(own(batch.rows)[0] for batch in batches) for batches in plan.batches]
    assert same(found(FedAvg, plan).client, sum(n / 18 * s for n, s in zip(SIZES, sums, strict=True)))


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in (CFL, IFCA)])
def test_every_method_with_all_it_can_do_gives_the_same_again_and_leaves_the_weights(cls: Any) -> None:
    before = {name: tensor.clone() for half in (WEIGHTS.client, WEIGHTS.server) for name, tensor in half.items()}
    torch.manual_seed(1)
    options = rich_of(cls)
    options.pop("selection", None)
    one = found(cls, **options)
    torch.manual_seed(2)
    other = found(cls, **options)
    assert torch.equal(one.client, other.client)
    assert torch.equal(one.server, other.server)
    assert float(one.client.norm()) > 0
    assert float(one.server.norm()) > 0
    after = {**WEIGHTS.client, **WEIGHTS.server}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_reference_is_the_gradient_at_the_weights_whatever_the_method_did() -> None:
    method = build(SFL, network(dtype=torch.float64), participants=3)
    applied(method, DATA, WEIGHTS, PLAN)
    everyone = np.arange(sum(SIZES))
    client, server = reference(method, WEIGHTS, DATA.population, everyone)
    assert torch.allclose(client, own(everyone)[0], rtol=1e-10)
    assert torch.allclose(server, own(everyone)[1], rtol=1e-10)


def test_clusters_that_a_checkpoint_does_not_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="clusters=2 is not allowed: 1 here"):
        found(IFCA, clusters=2)
    assert same(found(IFCA, clusters=1).client, found(FedAvg).client)
    with pytest.raises(ConfigError, match=r"eps2=1\.6 is not allowed: null here"):
        found(CFL, eps2=1.6)
    assert same(found(CFL, eps2=None).client, found(FedAvg).client)


def test_weights_of_another_network_are_refused() -> None:
    method = build(SFL, network(norm=True, dtype=torch.float64), participants=3)
    with pytest.raises(ConfigError, match="does not fit"):
        applied(method, DATA, WEIGHTS, PLAN)
