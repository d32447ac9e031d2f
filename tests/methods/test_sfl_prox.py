"""SFLProx: where its first steps are SFL's, how halves are drawn back, and the objective by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStep, ServerStep
from lightning_sfl.core.proximal import proximal_pull
from lightning_sfl.methods import SFL, FedAvg, SFLProx, SplitMethod
from tests.cli.terminal import SMALL, Terminal
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

SIZES = (5, 4, 9, 6)
EXACT = torch.float64


def trained(cls: type[SplitMethod], rounds: int = 4, net: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    options = {"batch_size": 4, "participants": 3, "client_optimizer": sgd(0.1, 0.9), **options}
    return whole(fit(build(cls, net or network(0.2, True), **options), rows(SIZES), rounds))


# --- the first step of a round ----------------------------------------------------------------------------------------


def test_rounds_of_one_step_are_sfl_bit_for_bit() -> None:
    """Whatever mu is, and in every round: each begins where the term is 0."""
    one = {"participants": 1, "local_steps": 1, "server_optimizer": sgd(0.1, 0.9)}
    assert differing(trained(SFLProx, 6, prox_mu=50.0, **one), trained(SFL, 6, **one)) == []
    two = one | {"local_steps": 2}
    assert differing(trained(SFLProx, 1, prox_mu=50.0, **two), trained(SFL, 1, **two)) != []


def test_the_one_server_half_feels_the_term_from_its_second_upload_on() -> None:
    one = {"local_steps": 1}
    alone = trained(SFLProx, prox_mu=5.0, prox_server=False, **one)
    assert differing(alone, trained(SFL, **one)) == []
    assert "head.weight" in differing(trained(SFLProx, 1, prox_mu=5.0, **one), trained(SFL, 1, **one))


def test_clients_are_drawn_to_where_they_themselves_began() -> None:
    """With batch-norm layers of their own, too."""
    one = {"local_steps": 1, "bn_buffers": "local", "prox_server": False}
    sfl = {key: value for key, value in one.items() if key != "prox_server"}
    assert differing(trained(SFLProx, 6, prox_mu=50.0, **one), trained(SFL, 6, **sfl)) == []
    average = trained(SFL, 6, local_steps=1)
    assert differing(trained(SFL, 6, **sfl), average) != []


# --- without another gradient -----------------------------------------------------------------------------------------


class OneStep(SFLProx):
    """The loss is flat after the first batch of each half: what follows is the proximal term alone."""

    calls = 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return super().loss(logits, labels) if self.calls == 1 else 0 * logits.sum()


class Ways(Recorder):
    """Both halves after each step, apart from where they began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[str, Tensor] = {}
        self.client: list[dict[str, Tensor]] = []
        self.server: list[dict[str, Tensor]] = []

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.begun = whole(module)

    def apart(self, half: nn.Module) -> dict[str, Tensor]:
        return {name: tensor - self.begun[name] for name, tensor in weights(half).items()}

    def on_client_step(self, module: SplitMethod, event: ClientStep) -> None:
        self.client.append(self.apart(event.turns[0].client_half))

    def on_server_step(self, module: SplitMethod, event: ServerStep) -> None:
        self.server.append(self.apart(event.server_half))


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("prox_server", [True, False])
def test_a_way_shrinks_by_one_minus_rate_times_mu_a_step(mu: float, prox_server: bool) -> None:
    seen = Ways()
    options = {"batch_size": 2, "client_optimizer": sgd(0.1), "server_optimizer": sgd(0.2), "prox_server": prox_server}
    fit(build(OneStep, network(dtype=EXACT), prox_mu=mu, **options), rows((9,), dtype=EXACT), 1, [seen])
    for ways, factor in ((seen.client, 1 - 0.1 * mu), (seen.server, 1 - 0.2 * mu if prox_server else 1.0)):
        assert len(ways) == 5
        assert all(float(way.abs().max()) > 1e-3 for way in ways[0].values())
        for count, way in enumerate(ways):
            assert furthest(way, {name: tensor * factor**count for name, tensor in ways[0].items()}) < 1e-15


# --- by hand ----------------------------------------------------------------------------------------------------------


def pulled(half: nn.Module, anchor: nn.Module, mu: float) -> Tensor:
    """mu/2 times the squared distance of a half from its anchor."""
    pairs = zip(half.parameters(), anchor.parameters(), strict=True)
    return mu / 2 * sum(((p - a.detach()).square().sum() for p, a in pairs), start=torch.zeros((), dtype=EXACT))


@pytest.mark.parametrize("prox_server", [True, False])
def test_three_rounds_by_hand(prox_server: bool) -> None:
    """Plain steps down the loss plus the term, from autograd of the sum, anchors being where each round began."""
    data, mu, lr = rows(SIZES, dtype=EXACT), 0.8, 0.1
    method = build(SFLProx, network(dtype=EXACT), prox_mu=mu, prox_server=prox_server, batch_size=4, participants=3)
    fit(method, data, 3)
    net = network(dtype=EXACT)
    client, server = net[:2], net[2:]
    for index in range(3):
        plan = method.plan(index)
        halves, begun = [copy.deepcopy(client) for _ in plan.participants], copy.deepcopy(server)
        for batch in (batch for sweep in plan.interleaved() for batch in sweep):
            half = halves[batch.slot]
            x, y = data.population.take(batch.rows)
            loss = cross_entropy(server(half(x)), y) + pulled(half, client, mu)
            loss = loss + (pulled(server, begun, mu) if prox_server else 0)
            moved = [*half.parameters(), *server.parameters()]
            for parameter, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                parameter.data -= lr * gradient
        total = sum(SIZES[i] for i in plan.participants)
        for number, parameter in enumerate(client.parameters()):
            shares = [SIZES[i] / total for i in plan.participants]
            ends = [[*half.parameters()][number].data for half in halves]
            parameter.data = sum(share * end for share, end in zip(shares, ends, strict=True))  # type: ignore[assignment]
    assert furthest(whole(method), dict(net.state_dict())) < 1e-13


# --- without a cut ----------------------------------------------------------------------------------------------------


class OwnFedProx(FedAvg):
    """FedProx of whole networks, as a method of one's own: what is merged stands where the round began."""

    def __init__(self, backbone: nn.Module, cut_layer: str, *, prox_mu: float = 0.01, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.prox_mu = prox_mu

    def guard_step(self, owned: Any, clients: Any, side: Any, cut_gradients: Any = ()) -> None:
        for halves in owned:
            for half, begun in zip(halves, (self.client_half, self.server_half), strict=True):
                proximal_pull(half.parameters(), [*begun.parameters()], self.prox_mu)
        super().guard_step(owned, clients, side, cut_gradients)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_fedprox_of_ones_own_by_hand(engine: str) -> None:
    """Two rounds of plain steps down the loss plus the term; with mu 0 FedAvg, bit for bit."""
    data, mu, lr = rows(SIZES, dtype=EXACT), 0.8, 0.1
    options = {"batch_size": 4, "participants": 3, "client_engine": engine, "client_optimizer": sgd(lr)}
    method = OwnFedProx(network(dtype=EXACT), "relu1", prox_mu=mu, **options)
    fit(method, data, 2)
    net = network(dtype=EXACT)
    for index in range(2):
        plan = method.plan(index)
        ends = [copy.deepcopy(net) for _ in plan.participants]
        for batch in (batch for sweep in plan.interleaved() for batch in sweep):
            x, y = data.population.take(batch.rows)
            moved = [*ends[batch.slot].parameters()]
            loss = cross_entropy(ends[batch.slot](x), y) + pulled(ends[batch.slot], net, mu)
            for parameter, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                parameter.data -= lr * gradient
        shares = [SIZES[client] / sum(SIZES[other] for other in plan.participants) for client in plan.participants]
        states = [end.state_dict() for end in ends]
        net.load_state_dict({n: sum(s * e[n] for s, e in zip(shares, states, strict=True)) for n in states[0]})
    assert furthest(whole(method), dict(net.state_dict())) < 1e-13
    plain = whole(fit(build(FedAvg, network(dtype=EXACT), **options), data, 2))
    still = OwnFedProx(network(dtype=EXACT), "relu1", prox_mu=0.0, **options)
    assert differing(whole(fit(still, data, 2)), plain) == []


# --- what it goes with ------------------------------------------------------------------------------------------------


def test_a_bound_holds_for_the_gradient_with_the_term() -> None:
    """A step of rate 1 is as long as the bound, however strong the term."""
    lengths: list[float] = []

    class Lengths(Ways):
        def on_client_step(self, module: SplitMethod, event: ClientStep) -> None:
            super().on_client_step(module, event)
            last = self.client[-2] if len(self.client) > 1 else dict.fromkeys(self.client[-1], torch.zeros(()))
            step = [(tensor - last[name]).flatten() for name, tensor in self.client[-1].items()]
            lengths.append(float(torch.cat(step).norm()))

    options = {"client_clip": 0.02, "client_optimizer": sgd(1.0), "batch_size": 4, "prox_mu": 30.0}
    fit(build(SFLProx, network(dtype=EXACT), **options), rows((16,), dtype=EXACT), 1, [Lengths()])
    assert len(lengths) == 4
    assert max(lengths) <= 0.02
    assert min(lengths) > 0.0199


def test_a_server_that_steps_once_a_sweep_feels_it_once_a_step() -> None:
    """With one step in the whole round there is nothing to be drawn back from."""
    options = {"dynamics": Dynamics(server_steps=1)}
    term = trained(SFLProx, 1, prox_mu=20.0, **options)
    without = trained(SFLProx, 1, prox_mu=20.0, prox_server=False, **options)
    assert differing(term, without) == []
    assert differing(trained(SFLProx, 1, prox_mu=20.0), trained(SFLProx, 1, prox_mu=20.0, prox_server=False)) != []


def test_the_stronger_the_term_the_less_far_clients_go() -> None:
    went = []
    for mu in (0.0, 1.0, 5.0):
        recorder = Recorder()
        options = {"batch_size": 4, "local_epochs": 3, "client_optimizer": sgd(0.1)}
        fit(build(SFLProx, prox_mu=mu, **options), rows(SIZES), 1, [recorder])
        ways = zip(recorder.starts, recorder.ends, strict=True)
        went.append(sum(float((start[name] - end[name]).norm()) for start, end in ways for name in start))
        assert len(recorder.of(ClientEnd)) == 4
    assert went[0] > went[1] > went[2] > 0


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_what_is_no_strength_is_refused(mu: float) -> None:
    with pytest.raises(ConfigError, match=f"prox_mu={mu} is not allowed: a finite number >= 0"):
        build(SFLProx, prox_mu=mu)


def test_its_config_runs_alone(terminal: Terminal) -> None:
    code, _, err = terminal.types("fit", "--config=configs/methods/sfl_prox.yaml", *SMALL, "--model.prox_server=false")
    assert (code, err) == (0, "")
