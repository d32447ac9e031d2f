"""USFL: joint steps, balanced rows drawn once an epoch, exchanged gradients, and rings that go on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import (
    ClientBackward,
    ClientEnd,
    ClientStep,
    CutGradient,
    RoundEnd,
    RoundStart,
    ServerStep,
)
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.label_selection import LabelAware
from lightning_sfl.core.rounds import Plan
from lightning_sfl.methods import USFL, SplitMethod
from tests.methods.toy import labelled, toy
from tests.tiny import (
    NUM_FEATURES,
    Recorder,
    Rows,
    build,
    differing,
    fit,
    furthest,
    network,
    rows,
    stretches,
    whole,
)

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


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_clients_sit_sweeps_out() -> None:
    recorder = run(rows((5, 3, 1)), balancing=NONE, server_batch_size=4, local_epochs=2)
    assert [event.client_ids for event in recorder.of(ServerStep)] == [(0, 1), (0, 1), (0, 1, 2)] * 2
    assert [event.rows for event in recorder.of(ServerStep)] == [3] * 6
    assert [len(event.turns) for event in recorder.of(ClientStep)] == [2, 2, 3] * 2
    assert {event.client_id: (event.steps, event.rows) for event in recorder.of(ClientEnd)} == {
        0: (6, 10), 1: (6, 6), 2: (2, 2),
    }  # fmt: skip


@pytest.mark.parametrize(("sizes", "options", "steps"), [
    ((5, 4, 9), {"batch_size": 4}, 2 * 2),  # joint batches of 18, 10, 7, 6, ... rows; 12 are wanted
    ((5, 4, 9), {"batch_size": 2}, 2 * 4),
    ((8, 8), {"server_batch_size": 4}, 2 * 4),
    ((8, 8), {"batch_size": None}, 2 * 1),
    ((8, 8), {"server_batch_size": 4, "local_steps": 7}, 7),
    ((20, 12, 7), {"server_batch_size": 10}, 2 * 4),
    ((20, 12, 7), {"server_batch_size": 10, "batch_schedule": "fixed"}, 2 * 3),
])  # fmt: skip
def test_server_steps(sizes: tuple[int, ...], options: dict[str, Any], steps: int) -> None:
    recorder = run(rows(sizes), balancing=NONE, **{"local_epochs": 2, **options})
    assert recorder.count(ServerStep) == steps


def planned(data: Rows, rounds: int = 1, **options: Any) -> list[Plan]:
    plans: list[Plan] = []

    class Keep(Recorder):
        def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
            plans.append(module.feed.plan)

    fit(USFL(network(), "relu1", **options), data, rounds, [Keep()])
    return plans


def visits(plan: Plan) -> Counter[int]:
    return Counter(int(row) for batches in plan.batches for batch in batches for row in batch.rows)


def test_an_epoch_is_one_pass_without_replacement() -> None:
    for plan in planned(rows((5, 4, 9)), 3, balancing=NONE, batch_size=4, local_epochs=2):
        assert visits(plan) == Counter(dict.fromkeys(range(18), 2))


def test_rows_are_balanced_and_their_rings_go_round() -> None:
    """8 rows of class 0 and 2 of class 1: every round 2 of each, so that 4 rounds use all of class 0 once."""
    data = Rows(torch.zeros(10, NUM_FEATURES), torch.tensor([0] * 8 + [1] * 2), [range(10)])
    plans = planned(data, 4, server_batch_size=2, balancing=Balancing(allow_missing_labels=True))
    seen = [visits(plan) for plan in plans]
    assert all(sum(n for row, n in each.items() if row < 8) == 2 for each in seen)
    assert sum(seen, Counter()) == Counter({**dict.fromkeys(range(8), 1), 8: 4, 9: 4})


def test_replication_repeats_rows() -> None:
    data = Rows(torch.zeros(9, NUM_FEATURES), torch.tensor([0] * 7 + [1] * 2), [range(9)])
    (plan,) = planned(data, balancing=Balancing("replication", allow_missing_labels=True))
    assert visits(plan) == Counter({**dict.fromkeys(range(7), 1), 7: 4, 8: 3})


def test_planning_again_changes_nothing() -> None:
    method = USFL(network(), "relu1", balancing=Balancing(allow_missing_labels=True), batch_size=4)
    fit(method, rows(), 3)
    one, other = method.plan(3), method.plan(3)
    for these, those in zip(one.batches, other.batches, strict=True):
        assert all(np.array_equal(a.rows, b.rows) for a, b in zip(these, those, strict=True))
    assert method.rings.pointers.any()


def test_who_has_no_row_to_use_does_not_take_part() -> None:
    """Of class 0 the target leaves one row, and the larger client has it."""
    balancing = Balancing("target", 1, "largest_remainder", allow_missing_labels=True)
    recorder = run(Rows(torch.zeros(4, NUM_FEATURES), torch.zeros(4, dtype=torch.int64), [range(3), range(3, 4)]),
                   balancing=balancing)  # fmt: skip
    assert [event.participants for event in recorder.of(RoundStart)] == [(0,)]
    assert [event.client_id for event in recorder.of(ClientEnd)] == [0]


def test_additional_epochs_make_up_for_trimmed_rows() -> None:
    """30 and 10 rows of two classes: trimming leaves 20 and takes 20 away, which is 2 joint batches of 10."""
    y = torch.tensor([0] * 30 + [1] * 10)
    data = Rows(torch.zeros(40, NUM_FEATURES), y, [[*range(15), *range(30, 35)], [*range(15, 30), *range(35, 40)]])
    options = {"server_batch_size": 10, "batch_schedule": "fixed",
               "balancing": Balancing(allow_missing_labels=True)}  # fmt: skip
    assert run(data, **options).count(ServerStep) == 2
    assert run(data, **options, additional_epochs=True).count(ServerStep) == 2 * (1 + 2)


def test_missing_classes() -> None:
    with pytest.raises(ConfigError, match=r"balancing\.allow_missing_labels=False") as refusal:
        fit(USFL(network(), "relu1"), Rows(torch.zeros(4, NUM_FEATURES), torch.tensor([0, 1, 2, 0]), [range(4)]))
    assert "\n" not in str(refusal.value)


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


# --- who takes part, and what cannot be balanced ----------------------------------------------------------------------


def test_label_aware_participants_cover_the_classes() -> None:
    data = rows((9, 8, 7, 9, 8, 7, 9, 8))
    method = USFL(network(), "relu1", participants=2, selection=LabelAware(usage="unused"), batch_size=4)
    recorder = Recorder()
    fit(method, data, 6, [recorder])
    for event in recorder.of(RoundStart):
        held = np.concatenate([data.population.rows[client] for client in event.participants])
        assert set(data.population.y[held].tolist()) == {0, 1, 2, 3}
    picks = [client for event in recorder.of(RoundStart) for client in event.participants]
    assert method.selection.picks[:, 0].unique().tolist() == [2, 3, 4, 5]
    assert len(set(picks)) > 4
    assert method.selection.uses.sum().item() == sum(event.rows for event in recorder.of(ClientEnd))


def test_a_selection_that_served_before_begins_anew() -> None:
    selection = LabelAware(usage="fresh")
    runs = [run(rows((9, 8, 7, 9)), rounds=4, participants=2, selection=selection, batch_size=2) for _ in range(2)]
    assert runs[0].losses == runs[1].losses


def test_clients_are_met_in_the_order_chosen() -> None:
    method, recorder = build(USFL, participants=3, client_order="selected"), Recorder()
    fit(method, rows((4, 4, 4, 4)), 6, [recorder])
    chosen = [event.participants for event in recorder.of(RoundStart)]
    assert chosen == method.schedule(6)
    assert any(list(clients) != sorted(clients) for clients in chosen)


def test_what_depends_on_the_past_has_no_schedule() -> None:
    method = USFL(network(), "relu1", participants=2, selection=LabelAware(), batch_size=2)
    fit(method, rows((9, 8, 7)))
    with pytest.raises(ConfigError, match="selection='LabelAware' is not allowed: its choices depend"):
        method.schedule(3)
    assert any("chosen by LabelAware as training goes on" in line for line in method.describe())
    assert method.selection.picks.shape == (2, 2)


def texts() -> Rows:
    """Rows of five positions, each with a class of its own."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(10, 5, NUM_FEATURES, generator=draw)
    return Rows(x, torch.randint(0, 4, (10, 5), generator=draw), stretches((6, 4)))


def test_sequences_train_unbalanced_and_are_refused_otherwise() -> None:
    method = USFL(network(), "relu1", balancing=NONE, batch_size=2, gradient_shuffle=GradientShuffle("random"))
    assert differing(whole(fit(method, texts())), dict(network().state_dict())) != []
    refused: list[dict[str, Any]] = [
        {}, {"balancing": NONE, "weighting": "label_capped"},
        {"balancing": NONE, "gradient_shuffle": GradientShuffle("inplace")},
        {"balancing": NONE, "selection": LabelAware()},
    ]  # fmt: skip
    for options in refused:
        with pytest.raises(ConfigError, match="have no class per row") as refusal:
            fit(USFL(network(), "relu1", **options), texts())
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("key", "value"), [("server_batch_size", 0), ("batch_schedule", "greedy"),
                                            ("weighting", "capped")])  # fmt: skip
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: "):
        build(USFL, **{key: value})
