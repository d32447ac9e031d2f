"""MiniBatch-SFL: gradients of clients alone, batches as large as the clients are, and what the joint step hangs on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStep, CutGradient, ServerBackward, ServerStep
from lightning_sfl.methods import SFL, MiniBatchSFL, SplitMethod
from tests.tiny import (
    Recorder,
    Rows,
    build,
    differing,
    fit,
    furthest,
    network,
    rows,
    sgd,
    stretches,
    weights,
    whole,
)

SIZES = (6, 4, 10)  # no batch of four leaves a single row, which batch norm would treat otherwise
NORM = {"norm": True}
RICH = {"norm": True, "dropout": 0.3}


def trained(net: dict[str, Any], cls: type[SplitMethod] = MiniBatchSFL, **options: Any) -> SplitMethod:
    options = {"batch_size": 4, **options}
    return fit(build(cls, network(dtype=torch.float64, **net), **options), rows(SIZES, dtype=torch.float64), 2)


# --- separate_forward -------------------------------------------------------------------------------------------------


def test_alone_is_the_gradient_of_an_own_forward_at_the_server_half_before_the_step() -> None:
    """Against autograd, in batch mode: each client's rows are normalised by their own mean and variance."""
    recorder = Recorder()
    method = build(MiniBatchSFL, network(dtype=torch.float64, norm=True), separate_forward=True, local_steps=1)
    before = copy.deepcopy(network(dtype=torch.float64, norm=True)).train()
    data = rows((3, 2, 6), dtype=torch.float64)
    fit(method, data, callbacks=[recorder])
    lower, upper = before[: list(dict(before.named_children())).index("relu1") + 1], before[3:]
    for event, batch in zip(recorder.of(CutGradient), [each[0] for each in method.feed.plan.batches], strict=True):
        x, y = data.population.take(batch.rows)
        received = lower(x).detach().requires_grad_()
        (wanted,) = torch.autograd.grad(cross_entropy(upper(received), y), received)
        torch.testing.assert_close(event.sent[0], wanted, rtol=0, atol=1e-14)
        assert torch.equal(event.raw[0], event.sent[0])
        assert event.rows == len(event.logits) == len(y)


def test_the_server_learns_from_the_joint_forward_only() -> None:
    """It ends where it ends without the option, buffers included: forwards of clients alone leave no trace."""
    states = []
    for separate in (False, True):
        method = trained(RICH, separate_forward=separate, local_steps=1, client_optimizer=sgd(0.0))
        states.append(weights(method.server_half))
    assert differing(*states) == []
    assert states[0]["bn2.num_batches_tracked"].item() == 2


def test_without_batch_norm_and_dropout_a_forward_alone_is_the_rescaled_slice() -> None:
    alone, rescaled = (whole(trained({}, separate_forward=separate)) for separate in (True, False))
    assert furthest(alone, rescaled) < 1e-12


def test_with_batch_norm_it_is_not() -> None:
    alone, rescaled = (whole(trained(NORM, separate_forward=separate)) for separate in (True, False))
    assert furthest(alone, rescaled) > 1e-4


@pytest.mark.parametrize("net", [{}, NORM, RICH], ids=str)
def test_with_a_server_that_does_not_learn_clients_alone_are_those_of_sfl(net: dict[str, Any]) -> None:
    frozen = {"server_optimizer": sgd(0.0)}
    alone = trained(net, separate_forward=True, **frozen)
    assert differing(weights(alone.client_half), weights(trained(net, SFL, **frozen).client_half)) == []


# --- batch_alloc ------------------------------------------------------------------------------------------------------


def proportional(sizes: tuple[int, ...], **options: Any) -> tuple[SplitMethod, Recorder]:
    recorder = Recorder()
    options = {"batch_alloc": "proportional", "weighting": "rows", "batch_size": 4, **options}
    method = build(MiniBatchSFL, network(dtype=torch.float64), **options)
    return fit(method, rows(sizes, dtype=torch.float64), callbacks=[recorder]), recorder


def batch_sizes(method: SplitMethod) -> list[list[int]]:
    return [[batch.num_rows for batch in batches] for batches in method.feed.plan.batches]


def test_batches_are_as_large_as_the_clients() -> None:
    """24 rows, 3 clients, 4 rows on average: 12 for each joint step, halved in proportion."""
    method, recorder = proportional((4, 8, 12))
    assert batch_sizes(method) == [[2, 2], [4, 4], [6, 6]]
    assert [event.rows for event in recorder.of(ServerStep)] == [12, 12]
    assert [turn.rows for turn in recorder.of(ClientStep)[0].turns] == [2, 4, 6]
    assert [event.weight for event in recorder.of(ClientEnd)] == [4, 8, 12]


def test_rows_are_dealt_out_among_the_participants_of_the_round() -> None:
    """Not among all clients; one that is tiny still gives a row; nobody gives more than it has."""
    method, _ = proportional((40, 4, 8, 1), participants=2, batch_size=6)
    clients = method.feed.plan.participants
    own = [(40, 4, 8, 1)[client] for client in clients]
    assert len(clients) == 2
    assert [found[0] for found in batch_sizes(method)] == [min(n, max(1, 12 * n // sum(own))) for n in own]
    assert batch_sizes(proportional((1, 60), batch_size=3)[0]) == [[1], [5] * 12]
    assert batch_sizes(proportional((2, 3), batch_size=100)[0]) == [[2], [3]]


def test_equal_clients_get_equal_batches() -> None:
    equal = build(MiniBatchSFL, network(dtype=torch.float64), batch_size=4, weighting="rows")
    fit(equal, rows((9, 9, 9), dtype=torch.float64))
    assert differing(whole(proportional((9, 9, 9))[0]), whole(equal)) == []


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_one_step_is_a_centralised_step_on_the_joint_batch(scale: float) -> None:
    """Clients' gradients of their own means, merged by B_i / sum B, are the gradient of the joint mean."""
    rate = sgd(scale)
    method, _ = proportional((4, 8, 13), local_steps=1, client_optimizer=rate, server_optimizer=rate)
    net, population = network(dtype=torch.float64), rows((4, 8, 13), dtype=torch.float64).population
    x, y = population.take(np.concatenate([batches[0].rows for batches in method.feed.plan.batches]))
    assert batch_sizes(method) == [[1], [3], [6]]
    cross_entropy(net(x), y).backward()
    wanted = {name: p.detach() - scale * p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert furthest(whole(method), wanted) < 1e-14


# --- the joint step ---------------------------------------------------------------------------------------------------


class ServerGradient(Recorder):
    """The server's gradient of the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Tensor] = {}

    def on_server_backward(self, module: SplitMethod, event: ServerBackward) -> None:
        found = {name: p.grad.clone() for name, p in event.server_half.named_parameters() if p.grad is not None}
        self.first = self.first or found


def server_gradient(owned: list[Any]) -> dict[str, Tensor]:
    whole_set = rows((20,), dtype=torch.float64).population
    seen = ServerGradient()
    method = build(MiniBatchSFL, network(dtype=torch.float64), batch_size=None, participants=len(owned))
    fit(method, Rows(whole_set.x, whole_set.y, owned), callbacks=[seen])
    return seen.first


def test_the_servers_gradient_is_the_mean_of_the_clients_by_their_rows() -> None:
    owned = stretches(SIZES)
    own = [server_gradient([stretch]) for stretch in owned]
    for name, joint in server_gradient(owned).items():
        mean = sum(len(stretch) / 20 * each[name] for stretch, each in zip(owned, own, strict=True))
        torch.testing.assert_close(joint, mean, rtol=0, atol=1e-15)


def test_the_servers_first_gradient_does_not_depend_on_who_holds_what() -> None:
    draw, reference = np.random.default_rng(0), server_gradient([range(20)])
    for _ in range(5):
        cuts = np.sort(draw.choice(np.arange(1, 20), draw.integers(1, 5), replace=False))
        owned = np.split(draw.permutation(20), cuts)
        assert furthest(server_gradient(owned), reference) < 1e-15


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"batch_alloc": "fair"}, "batch_alloc='fair' is not allowed: one of"),
    ({"batch_alloc": "proportional"}, "weighting='samples' is not allowed: rows where batch_alloc is proportional"),
    (
        {"batch_alloc": "proportional", "weighting": "rows", "batch_size": None},
        "batch_size=None is not allowed: an integer >= 1 where batch_alloc is proportional",
    ),
    (
        {"separate_forward": True, "client_gradient_scale": "concat_mean"},
        "separate_forward=True is not allowed: false where client_gradient_scale is concat_mean",
    ),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=lambda case: str(case)[:40])
def test_options_without_a_meaning_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(MiniBatchSFL, **options)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)
