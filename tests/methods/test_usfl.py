"""USFL: joint steps, exchanged gradients, and the merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.events import ClientBackward, ClientEnd, CutGradient, RoundEnd, RoundStart, ServerStep
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.methods import USFL, SplitMethod
from tests.methods.toy import labelled, toy
from tests.tiny import Recorder, Rows, fit, furthest, network, rows, stretches, whole

NONE = Balancing("none")


def run(data: Rows, net: Any = None, cut_layer: str = "relu1", rounds: int = 1, **options: Any) -> Recorder:
    recorder = Recorder()
    fit(USFL(net or network(), cut_layer, **options), data, rounds, [recorder])
    return recorder


# --- the joint step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "scaled"), [(2.0, False), (-1.0, True)])
def test_adaptive_shares_are_in_the_record_of_the_round(beta: float, scaled: bool) -> None:
    blend = GradientShuffle("average_adaptive_alpha", adaptive_beta=beta)
    options = {"balancing": NONE, "gradient_shuffle": blend, "batch_size": 3, "scale_client_gradient": scaled}
    recorder = run(rows(), rounds=2, **options)
    steps: list[list[Tensor]] = [[]]
    for event in recorder.events:
        if isinstance(event, CutGradient):
            steps[-1].append(event.raw[0])
        elif isinstance(event, ClientBackward):
            steps.append([])
        elif isinstance(event, RoundEnd):
            joint = [torch.cat(step) for step in steps if step]
            cosines = [torch.cosine_similarity(step, step.mean(0, keepdim=True)) for step in joint]
            shares = torch.cat([1 / (1 + torch.exp(-beta * cosine)) for cosine in cosines])
            found = {"mean": shares.mean(), "min": shares.min(), "max": shares.max()}
            told = {f"shuffle/alpha_{kind}": float(value) for kind, value in found.items()}
            assert event.scalars == pytest.approx(told, rel=1e-5)
            steps = [[]]
    assert recorder.count(RoundEnd) == 2
    others = run(rows(), balancing=NONE, batch_size=3, gradient_shuffle=GradientShuffle("average"))
    assert others.of(RoundEnd)[0].scalars == {}


@pytest.mark.parametrize(("scale", "denominator"), [(False, 4), (True, 2)])
def test_every_row_is_divided_by_all_rows(scale: bool, denominator: int) -> None:
    recorder = run(
        labelled([0], [0, 1, 0]), toy(), "lower", batch_size=None, balancing=NONE, scale_client_gradient=scale
    )
    for event in recorder.of(CutGradient):
        wanted = torch.tensor([[-0.5, 0.5] if label == 0 else [0.5, -0.5] for label in event.labels]) / denominator
        assert torch.equal(event.sent[0], wanted)


class Gradients(Recorder):
    """Parameter gradients of every client, from its first backward."""

    def __init__(self) -> None:
        super().__init__()
        self.of_client: dict[int, list[Tensor]] = {}

    def on_client_backward(self, module: SplitMethod, event: ClientBackward) -> None:
        for turn in event.turns:
            self.of_client[turn.client_id] = [p.grad.clone() for p in turn.client_half.parameters()]


@pytest.mark.parametrize(("scale", "factor"), [(False, 1), (True, 3)])
def test_client_gradients_are_shares_of_their_own(scale: bool, factor: int) -> None:
    """b_i / S of the gradient of the own mean loss; without scaling they add up to that of the joint mean."""
    data, net = rows((2, 3, 5), dtype=torch.float64), network(dtype=torch.float64)
    x, y = data.population.x, data.population.y
    lower = [net.fc1.weight, net.fc1.bias]
    own = [torch.autograd.grad(cross_entropy(net(x[list(r)]), y[list(r)]), lower) for r in stretches((2, 3, 5))]
    joint = torch.autograd.grad(cross_entropy(net(x), y), lower)
    seen = Gradients()
    fit(USFL(net, "relu1", batch_size=None, balancing=NONE, scale_client_gradient=scale), data, callbacks=[seen])
    for client, share in enumerate((0.2, 0.3, 0.5)):
        for got, wanted in zip(seen.of_client[client], own[client], strict=True):
            torch.testing.assert_close(got, factor * share * wanted, rtol=0, atol=1e-14)
    for parameter, wanted in enumerate(joint):
        total = sum(seen.of_client[client][parameter] for client in range(3))
        torch.testing.assert_close(total, factor * wanted, rtol=0, atol=1e-14)


# --- gradients back to clients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "inplace", "average", "average_adaptive_alpha"])
@pytest.mark.parametrize("scale", [False, True])
def test_rows_are_exchanged(strategy: Any, scale: bool) -> None:
    recorder = run(rows(), batch_size=None, balancing=NONE, gradient_shuffle=GradientShuffle(strategy),
                   scale_client_gradient=scale)  # fmt: skip
    events = recorder.of(CutGradient)
    raw = torch.cat([event.raw[0] for event in events]) * (3 if scale else 1)
    sent = torch.cat([event.sent[0] for event in events])
    assert [len(event.sent[0]) for event in events] == [5, 4, 9]
    assert not torch.equal(raw, sent)
    if strategy in ("random", "inplace"):
        assert sorted(sent.tolist()) == sorted(raw.tolist())
    if strategy != "average_adaptive_alpha":
        torch.testing.assert_close(sent.sum(dim=0), raw.sum(dim=0))


def test_the_exchange_differs_from_sweep_to_sweep() -> None:
    recorder = run(rows((12,)), batch_size=6, balancing=NONE, gradient_shuffle=GradientShuffle("random"))
    orders = [
        [event.raw[0].tolist().index(row) for row in event.sent[0].tolist()] for event in recorder.of(CutGradient)
    ]
    assert len(orders) == 2
    assert orders[0] != orders[1]


def test_the_servers_rate_is_multiplied_before_its_schedule_begins() -> None:
    def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda round: 0.5**round)

    rates: list[tuple[float, float]] = []

    class Rates(Recorder):
        def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
            pair = [module.optimizer(role).optimizer.param_groups[0]["lr"] for role in ("client", "server")]
            rates.append((pair[0], pair[1]))

    method = USFL(network(), "relu1", participants=2, balancing=NONE, scale_server_lr=True, server_scheduler=halved)
    fit(method, rows(), 3, [Rates()])
    assert rates == [(0.1, 0.2), (0.1, 0.1), (0.1, 0.05)]


# --- the merge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["rows", "samples", "uniform", "label_capped"])
def test_weights(weighting: Any) -> None:
    data = rows((5, 4, 9))
    balancing = Balancing(allow_missing_labels=True)
    recorder = run(data, weighting=weighting, balancing=balancing, batch_size=4, local_epochs=2)
    ends = {event.client_id: event for event in recorder.of(ClientEnd)}
    used = [event.rows for event in ends.values()]
    assert used != [5, 4, 9]
    shares = {"rows": used, "samples": [5, 4, 9], "label_capped": [5, 4, 9], "uniform": [1, 1, 1]}[weighting]
    total = sum(event.weight for event in ends.values())
    assert [ends[c].weight / total for c in range(3)] == pytest.approx([s / sum(shares) for s in shares])


def test_label_capped_is_by_samples() -> None:
    states = [
        whole(fit(USFL(network(), "relu1", balancing=NONE, weighting=weighting), rows(), 3))  # type: ignore[arg-type]
        for weighting in ("samples", "label_capped")
    ]
    assert furthest(*states) < 1e-6


def test_server_batch_norm_counts_sweeps() -> None:
    method = USFL(network(norm=True), "relu1", balancing=NONE, batch_size=4)
    recorder = Recorder()
    fit(method, rows((6, 4, 10)), callbacks=[recorder])
    tracked = method.server_half.state_dict()["bn2.num_batches_tracked"]
    assert tracked.dtype == torch.int64
    assert tracked.item() == recorder.count(ServerStep) == 2
    means = [end["bn1.running_mean"] for end in recorder.ends]
    merged = sum(mean * n for mean, n in zip(means, (6, 4, 10), strict=True)) / 20
    torch.testing.assert_close(method.client_half.state_dict()["bn1.running_mean"], merged)
