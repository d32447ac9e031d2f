"""Per-FedAvg and Reptile: their boxes carried out by hand; and what a network is worth once adapted to a client."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import ClientMetrics, RoundRecord
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Work, draw_batches
from lightning_sfl.measures.adapted import adapted
from lightning_sfl.methods import SFL, SFLV1, FedAvg, PerFedAvg, Reptile, SplitMethod
from lightning_sfl.records.round_log import read_rounds
from tests import tiny
from tests.cli.terminal import SMALL, Terminal
from tests.tiny import Recorder, Rows, build, differing, fit, furthest, network, rows, sgd, weights, whole

State = dict[str, Tensor]
EXACT = torch.float64
SIZES = (8, 5, 9)
ALPHA, BETA = 0.3, 0.2


def parameters(net: torch.nn.Module) -> State:
    return {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}


def loss_of(state: State, data: Rows, owned: np.ndarray) -> Tensor:
    x, y = data.population.x[owned], data.population.y[owned]
    return cross_entropy(functional_call(network(dtype=EXACT), state, (x,)), y)


def stepped(state: State, gradients: tuple[Tensor, ...], rate: float) -> State:
    return {name: p - rate * g for (name, p), g in zip(state.items(), gradients, strict=True)}


def after_step(variant: str, state: State, data: Rows, batch: np.ndarray) -> State:
    """One local step, its second derivatives those of autograd: for hf, the gradient of the adapted loss."""
    first, second = batch[: len(batch) // 2], batch[len(batch) // 2 :]
    over = list(state.values())
    inner = torch.autograd.grad(loss_of(state, data, first), over, create_graph=variant == "hf")
    adapted_state = stepped(state, inner, ALPHA)
    if variant == "fo":
        adapted_state = {name: p.detach().requires_grad_() for name, p in adapted_state.items()}
        over = list(adapted_state.values())
    outer = torch.autograd.grad(loss_of(adapted_state, data, second), over)
    return {name: p.detach().requires_grad_() for name, p in stepped(state, outer, BETA).items()}


def by_hand(variant: str, data: Rows) -> State:
    """A round of batches of 4 rows, clients in the order of their ids."""
    ends = []
    for client, owned in enumerate(data.population.rows):
        state = parameters(network(dtype=EXACT))
        for batch in draw_batches(0, 0, client, owned, Work(4, 1)):
            state = after_step(variant, state, data, batch) if len(batch) > 1 else plain_step(state, data, batch)
        ends.append(state)
    total = sum(SIZES)
    return {name: sum(n / total * end[name] for n, end in zip(SIZES, ends, strict=True)).detach() for name in ends[0]}  # type: ignore[union-attr]


def plain_step(state: State, data: Rows, batch: np.ndarray) -> State:
    gradients = torch.autograd.grad(loss_of(state, data, batch), list(state.values()))
    return {name: p.detach().requires_grad_() for name, p in stepped(state, gradients, BETA).items()}


def run(cls: type[SplitMethod], data: Rows | None = None, rounds: int = 1, **options: Any) -> State:
    data = rows(SIZES, dtype=EXACT) if data is None else data
    net = network(dtype=data.population.x.dtype)
    return whole(fit(build(cls, net, **{"batch_size": 4, "client_optimizer": sgd(BETA), **options}), data, rounds))


# --- Per-FedAvg -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_a_round_by_hand(variant: str, engine: str) -> None:
    """Batches of 4, 4; 4, 1; 4, 4, 1 rows: of a single row nothing is left to adapt with."""
    delta = {"delta": 1e-5} if variant == "hf" else {}
    found = run(PerFedAvg, adapt_lr=ALPHA, variant=variant, client_engine=engine, **delta)
    data = rows(SIZES, dtype=EXACT)
    assert furthest(found, by_hand(variant, data)) < (1e-8 if variant == "hf" else 1e-14)
    other = "fo" if variant == "hf" else "hf"
    assert furthest(found, by_hand(other, data)) > 1e-3


def test_the_differences_come_closer_as_delta_shrinks() -> None:
    wanted = by_hand("hf", rows(SIZES, dtype=EXACT))
    off = [furthest(run(PerFedAvg, adapt_lr=ALPHA, variant="hf", delta=d), wanted) for d in (1.0, None, 1e-5)]
    assert off[0] > 1e-3
    assert 1e-6 > off[1] > 10 * off[2]


def test_what_training_records_is_the_loss_of_adapted_networks() -> None:
    data = rows((8,), dtype=EXACT)
    recorder = Recorder()
    options = {"adapt_lr": ALPHA, "batch_size": None}
    fit(build(PerFedAvg, network(dtype=EXACT), **options), data, callbacks=[recorder])
    (batch,) = draw_batches(0, 0, 0, data.population.rows[0], Work(None, 1))
    state = parameters(network(dtype=EXACT))
    inner = torch.autograd.grad(loss_of(state, data, batch[:4]), list(state.values()))
    wanted = loss_of(stepped(state, inner, ALPHA), data, batch[4:]).item()
    assert recorder.losses == [pytest.approx(wanted, abs=1e-14)]


def test_batch_norm_statistics_follow_the_second_half_alone() -> None:
    """Of the first layer they do not depend on weights that are adapted before it."""
    statistics = []
    for alpha, variant in ((0.0, "fo"), (0.4, "fo"), (0.4, "hf")):
        options = {"adapt_lr": alpha, "variant": variant, "batch_size": None, "client_optimizer": sgd(0.0)}
        method = fit(build(PerFedAvg, network(norm=True), **options), rows(SIZES))
        state = whole(method)
        assert int(state["bn1.num_batches_tracked"]) == 1
        statistics.append(state["bn2.running_mean"])
    assert torch.equal(statistics[1], statistics[2])
    assert not torch.equal(statistics[0], statistics[1])


def test_second_derivatives_take_their_simulated_time() -> None:
    flops = []
    for variant in ("fo", "hf"):
        method = fit(build(PerFedAvg, variant=variant), rows(SIZES))
        flops.append(method.costs(method.data.example()[:1]).flops)
    assert flops[1] == 2 * flops[0]


def test_adaptation_helps_more_where_it_was_trained_for(tmp_path: Path) -> None:
    """Two clients whose labels contradict each other: only adaptation can serve both."""
    base = rows((40,), dtype=EXACT)
    x, y = base.population.x, base.population.y
    data = Rows(x.repeat(2, 1), torch.cat([y, 3 - y]), [range(40), range(40, 80)])
    gains = {}
    for cls, own in ((FedAvg, {}), (PerFedAvg, {"adapt_lr": 0.5})):
        metrics = ClientMetrics(adapt_steps=1, adapt_lr=0.5)
        options = {"batch_size": 20, "local_epochs": 2, "client_optimizer": sgd(0.1), **own}
        folder = tmp_path / cls.__name__
        method = build(cls, network(dtype=EXACT), **options)
        tiny.trainer(40, [metrics, RoundRecord()], default_root_dir=folder, precision="64-true").fit(method, data)
        scalars = read_rounds(folder / "rounds.jsonl")[-1]["scalars"]
        gains[cls] = scalars["client/merged_train_loss_mean"] - scalars["client/adapted_train_loss_mean"]
        gains[cls, "after"] = scalars["client/adapted_train_loss_mean"]
    assert gains[PerFedAvg] > gains[FedAvg] > 0
    assert gains[PerFedAvg, "after"] < gains[FedAvg, "after"]


# --- Reptile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_a_part_of_the_way(rate: float) -> None:
    start, mean = dict(network(dtype=EXACT).state_dict()), run(FedAvg, weighting="uniform")
    wanted = {name: start[name] + rate * (mean[name] - start[name]) for name in start}
    assert furthest(run(Reptile, rate=rate), wanted) < 1e-14
    assert furthest(run(Reptile, rate=rate), run(FedAvg, weighting="uniform", merge_optimizer=sgd(rate))) < 1e-14


@pytest.mark.parametrize("rate", [0.25, 0.9])
def test_with_a_cut_it_is_a_merge_optimizer(rate: float) -> None:
    """SFLV1 is Reptile, as it is FedAvg; in SFL client halves go so far, and the one server half is as trained."""
    options = {"weighting": "uniform", "server_optimizer": sgd(BETA)}
    whole_way, reptile = run(SFLV1, rounds=3, merge_optimizer=sgd(rate), **options), run(Reptile, rounds=3, rate=rate)
    assert furthest(whole_way, reptile) < 1e-13
    start, mean = dict(network(dtype=EXACT).state_dict()), run(SFL, **options)
    wanted = {name: mean[name] for name in start} | {
        name: start[name] + rate * (mean[name] - start[name]) for name in start if name.startswith("fc1.")
    }
    assert furthest(run(SFL, merge_optimizer=sgd(rate), **options), wanted) < 1e-14
    assert furthest(mean, wanted) > 1e-4


def test_the_rate_falls_by_the_same_step_every_round_and_then_stays_zero(tmp_path: Path) -> None:
    """Where one network goes, step by step, from what clients hand in; a run that is resumed goes on falling."""
    merged: list[State] = [dict(network(dtype=EXACT).state_dict())]
    means: list[State] = []

    class Keep(Recorder):
        def on_client_end(self, module: SplitMethod, event: Any) -> None:
            self.ends.append(weights(event.client_half) | weights(event.server_half))

        def on_round_end(self, module: SplitMethod, event: Any) -> None:
            means.append({name: torch.stack([e[name] for e in self.ends[-3:]]).mean(dim=0) for name in self.ends[0]})
            merged.append(whole(module))
            rates.append(event.scalars["reptile/rate"])

    def trained(rounds: int, resume: Path | None = None) -> State:
        method = build(Reptile, network(dtype=EXACT), rate=0.8, anneal_rounds=4, batch_size=4)
        watchers = [Keep(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
        return whole(fit(method, rows(SIZES, dtype=EXACT), rounds, watchers, resume, enable_checkpointing=True))

    rates: list[float] = []
    through = trained(6)
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0], abs=1e-15)
    for before, after, mean, rate in zip(merged, merged[1:], means, (0.8, 0.6, 0.4, 0.2, 0.0, 0.0), strict=False):
        wanted = {name: before[name] + rate * (mean[name] - before[name]) for name in before}
        assert furthest(after, wanted) < 1e-14
    assert differing(merged[4], merged[6]) == []
    assert differing(trained(6, tmp_path / "epoch=1.ckpt"), through) == []
    assert differing(run(Reptile, rate=0.8, anneal_rounds=9), run(Reptile, rate=0.8)) == []  # one round, which is whole


def test_its_clients_count_alike_unless_told_otherwise() -> None:
    assert differing(run(Reptile, rate=1.0), run(FedAvg, weighting="uniform")) == []
    assert differing(run(Reptile, rate=1.0, weighting="samples"), run(FedAvg)) == []
    assert furthest(run(Reptile, rate=1.0), run(FedAvg)) > 1e-6


def test_statistics_are_taken_as_they_were_merged() -> None:
    states = []
    for cls, own in ((Reptile, {"rate": 0.3}), (FedAvg, {"weighting": "uniform"})):
        states.append(whole(fit(build(cls, network(norm=True), **own), rows(SIZES))))
    assert {name.rpartition(".")[2] for name in differing(*states)} == {"weight", "bias"}


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="merge_optimizer='an optimizer' is not allowed: null in Reptile"):
        build(Reptile, merge_optimizer=sgd(1.0))
    for cls, key, value in (
        (Reptile, "rate", 0.0),
        (PerFedAvg, "adapt_lr", float("nan")),
        (PerFedAvg, "delta", 1.0),
        (Reptile, "anneal_rounds", 0),
    ):
        with pytest.raises(ConfigError, match=f"{key}={value} is not allowed"):
            build(cls, **{key: value})


# --- adapted to a client ----------------------------------------------------------------------------------------------


def test_adapted_copies() -> None:
    """Three steps by torch's own optimizer; the halves given stay, in weights, statistics and mode."""
    data, net = rows((9,), dtype=EXACT), network(dropout=0.3, norm=True, dtype=EXACT)
    halves, before = [net[:3].train(), net[3:].train()], weights(net)
    found = adapted(cross_entropy, halves, data.population, 3, 0.2)
    plain = copy.deepcopy(net).eval()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(plain(data.population.x), data.population.y).backward()
        optimizer.step()
    assert furthest(weights(torch.nn.Sequential(*found[0], *found[1])), weights(torch.nn.Sequential(*plain))) < 1e-14
    assert differing(weights(net), before) == []
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("cls", [PerFedAvg, Reptile, FedAvg])
def test_before_and_after_stand_in_the_records_and_looking_changes_nothing(cls: Any, tmp_path: Path) -> None:
    states = []
    for place, metrics in enumerate((ClientMetrics(0), ClientMetrics(adapt_steps=2, adapt_lr=0.1))):
        method = build(cls, network(0.2, norm=True), participants=2, batch_size=4, client_optimizer=sgd(0.1, 0.9))
        tiny.trainer(2, [metrics, RoundRecord()], default_root_dir=tmp_path / str(place)).fit(method, rows(SIZES))
        states.append(whole(method))
    assert differing(*states) == []
    last = read_rounds(tmp_path / "1" / "rounds.jsonl")[-1]
    for fields in last["population"].values():
        assert fields["adapted_train_loss"] < fields["merged_train_loss"]
    assert last["scalars"]["client/adapted_train_loss_mean"] < last["scalars"]["client/merged_train_loss_mean"]


@pytest.mark.parametrize("name", ["per_fedavg", "reptile"])
def test_their_configs_run_alone(name: str, terminal: Terminal) -> None:
    looking = ["--client_metrics.every=1", "--data.client_val_fraction=0.2", "--client_metrics.train_rows=false"]
    adapting = ["--client_metrics.adapt_steps=1", "--client_metrics.adapt_lr=0.1"]
    code, _, err = terminal.types("fit", f"--config=configs/methods/{name}.yaml", *SMALL, *looking, *adapting)
    assert (code, err) == (0, "")
    (path,) = terminal.folder.glob("runs/*/version_0/rounds.jsonl")
    scalars = json.loads(path.read_text().splitlines()[-1])["scalars"]
    assert {"client/merged_val_acc_mean", "client/adapted_val_acc_mean"} <= {*scalars}
    assert not [tag for tag in scalars if tag.startswith("client/") and "train_" in tag]
