"""CFL: groups that part, who is late, and what it remembers."""

from __future__ import annotations

import csv
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_sfl.core.aggregators import Krum
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd
from lightning_sfl.core.state import copied
from lightning_sfl.data import Digits
from lightning_sfl.methods import CFL, FedAvg, SplitMethod
from tests.cli.terminal import SMALL, Terminal
from tests.methods.clusters import EXACT, Networks, contradicting, id_of
from tests.tiny import Recorder, Rows, build, differing, fit, network, rows, sgd, whole

SIZES = (8, 5, 9, 7, 6)


# --- closed forms -----------------------------------------------------------------------------------------------------


def opposed(each: int = 3) -> tuple[nn.Module, Rows]:
    """A head of zeros, and two groups of clients with the same rows and swapped labels: opposite gradients."""
    data = rows((12,), dtype=EXACT)
    x, y = data.population.x.repeat(2 * each, 1), (data.population.y % 2).repeat(2 * each)
    for client in range(1, 2 * each, 2):
        y[12 * client : 12 * client + 12] = 1 - y[12 * client : 12 * client + 12]
    net = network(dtype=EXACT)
    net.head = nn.Linear(7, 2, dtype=EXACT)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net, Rows(x, y, [range(12 * client, 12 * client + 12) for client in range(2 * each)], num_classes=2)


def after_one_round(**options: Any) -> tuple[CFL, dict[str, float]]:
    net, data = opposed()
    seen = Networks()
    method = fit(build(CFL, net, batch_size=None, **options), data, 1, [seen])
    assert isinstance(method, CFL)
    return method, seen.scalars[0]


def test_groups_with_opposite_gradients_part_exactly() -> None:
    _, told = after_one_round(eps1=0.0, eps2=None)
    length = told["cluster/longest_update_0"]
    assert told["cluster/mean_update_0"] < 1e-7 * length
    method, told = after_one_round(eps1=1e-6 * length, eps2=0.999 * length)
    assert method.joined == {0: 1, 2: 1, 4: 1, 1: 2, 3: 2, 5: 2}
    assert told["cluster/count"] == 2
    assert (told["cluster/clients_1"], told["cluster/clients_2"]) == (3, 3)
    one, other = (state["1.head.weight"] for state in method.networks[1:])
    torch.testing.assert_close(one, -other)
    assert float(one.norm()) > 0.1 * length
    assert after_one_round(eps1=1e-6 * length, eps2=1.001 * length)[1]["cluster/count"] == 1
    assert after_one_round(eps1=0.0, eps2=0.5 * length)[1]["cluster/count"] == 1


def test_clients_that_agree_never_part() -> None:
    data = rows((12,), dtype=EXACT)
    data.population = Rows(data.population.x, data.population.y, [range(12)] * 4).population
    seen = Networks()
    fit(build(CFL, network(dtype=EXACT), batch_size=None, client_optimizer=sgd(1.0)), data, 6, [seen])
    lengths = [scalars["cluster/longest_update_0"] for scalars in seen.scalars]
    assert lengths == pytest.approx([scalars["cluster/mean_update_0"] for scalars in seen.scalars])
    for eps in (0.99 * min(lengths), 0.5 * sum(lengths) / 6, 1.01 * max(lengths)):
        again = Networks()
        options = {"batch_size": None, "client_optimizer": sgd(1.0), "eps1": eps, "eps2": eps}
        fit(build(CFL, network(dtype=EXACT), **options), data, 6, [again])
        assert [scalars["cluster/count"] for scalars in again.scalars] == [1.0] * 6


# --- groups of clients ------------------------------------------------------------------------------------------------


def digits(clients: int = 6, each: int = 60, seed: int = 0) -> Rows:
    """Handwritten digits; every other client calls them by other names."""
    draw, corpus = np.random.default_rng(seed), Digits().load()
    dealt = draw.permutation(len(corpus.train_y))[: clients * each].reshape(clients, each)
    y, names = corpus.train_y.clone(), torch.from_numpy(draw.permutation(10))
    for own in dealt[1::2]:
        y[own] = names[y[own]]
    return Rows(corpus.train_x, y, dealt.tolist(), num_classes=10)


def reader(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        stages = OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(64, 32), relu1=nn.ReLU(), head=nn.Linear(32, 10))
        return nn.Sequential(stages)


def accuracy(method: SplitMethod, data: Rows) -> float:
    """Of the networks that clients are served with, on their rows."""
    right = []
    for client, own in enumerate(data.population.rows):
        lower, upper = method.serving(client)
        x, y = data.population.take(own)
        right.append((upper(lower(x)).argmax(-1) == y).float().mean())
    return float(torch.stack(right).mean())


@pytest.mark.parametrize(("participants", "seed"), [(6, 0), (6, 1), (4, 2)])
def test_readers_of_other_names_part_and_read_better(participants: int, seed: int) -> None:
    """With the thresholds that the class has by default where all take part; where some do, they rest less."""
    data, found = digits(seed=seed), {}
    options = {"participants": participants, "batch_size": 20, "local_epochs": 5, "client_optimizer": sgd(0.3)}
    own = {} if participants == 6 else {"eps1": 0.5}
    for cls, more in ((CFL, own), (FedAvg, {})):
        method = cls(reader(seed), "relu1", seed=seed, **more, **options)
        found[type(method)] = accuracy(fit(method, data, 20), data)
        groups = [{id_of(method, client) for client in range(start, 6, 2)} for start in (0, 1)]
        assert [len(group) for group in groups] == [1, 1]
        assert (groups[0] != groups[1]) is isinstance(method, CFL)
    assert found[CFL] > 0.95
    assert found[FedAvg] < 0.85


def test_a_cluster_that_nobody_is_before_is_let_go() -> None:
    method = fit(build(CFL, network(dtype=EXACT), eps1=0.5, eps2=0.5, client_optimizer=sgd(0.5)), contradicting(), 20)
    assert isinstance(method, CFL)
    assert len(method.networks) > 1
    assert method.networks[0] == {}
    assert method.divided == {}


def test_the_late_are_neither_divided_nor_placed() -> None:
    late: set[int] = set()
    moved: list[set[int]] = []

    class Late(Recorder):
        def on_round_start(self, module: SplitMethod, event: Any) -> None:
            self.before = dict(module.joined)  # type: ignore[attr-defined]

        def on_client_end(self, module: SplitMethod, event: ClientEnd) -> None:
            if not event.finished:
                late.add(event.client_id)

        def on_round_end(self, module: SplitMethod, event: Any) -> None:
            after = module.joined  # type: ignore[attr-defined]
            now = {client for client in after if after[client] != self.before.get(client, 0)}
            assert not late & now
            if late:
                moved.append(now)
            late.clear()

    options = {"participants": 3, "batch_size": 4, "eps1": 0.3, "eps2": 0.3, "client_optimizer": sgd(0.1, 0.9)}
    fit(build(CFL, network(norm=True), attendance=Attendance(overcommit=1.6), **options), rows(SIZES), 12, [Late()])
    assert sum(map(bool, moved)) > 1


def test_layers_that_clients_keep_have_no_say() -> None:
    for policy, counts in (("average", True), ("local", False)):
        method = fit(build(CFL, network(norm=True), bn_buffers=policy), rows(SIZES))
        assert isinstance(method, CFL)
        for name, said in (("0.bn1.weight", counts), ("0.bn1.running_mean", False), ("1.fc2.weight", True)):
            other = copied(method.networks[0])
            other[name] += 1
            squared = method.products(0, [other]).item()
            assert squared == pytest.approx(other[name].numel() if said else 0, rel=1e-5)


def test_everybody_gets_one_network_and_sends_one() -> None:
    size, recorder = sum(p.numel() for p in network().parameters()) * 4, Recorder()
    fit(build(CFL, participants=2, eps1=0.3, eps2=0.3), rows(SIZES), 3, [recorder])
    assert recorder.traffic_bytes == [{("weights", "down"): 2 * size, ("weights", "up"): 2 * size}] * 3


# --- what outlives a round, and what is refused -----------------------------------------------------------------------


def trained(rounds: int, keep: Path | None = None, resume: Path | None = None) -> CFL:
    options = {"participants": 3, "batch_size": 4, "eps1": 0.3, "eps2": 0.3, "client_optimizer": sgd(0.1, 0.9)}
    watchers = [ModelCheckpoint(keep, filename="{epoch}", save_top_k=-1)] if keep else []
    method = build(CFL, network(0.1, True), **options)
    fit(method, rows((5, 4, 9, 2, 7)), rounds, watchers, resume, enable_checkpointing=keep is not None)
    assert isinstance(method, CFL)
    return method


def test_networks_and_divisions_outlive_a_resume(tmp_path: Path) -> None:
    through = trained(9, tmp_path)
    waiting = []
    for epoch in range(8):
        memory = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["lightning_sfl"]["memory"]
        waiting.append(bool(memory["divided"]))
        if not waiting[-1] and epoch != 0:
            continue
        resumed = trained(9, tmp_path, tmp_path / f"epoch={epoch}.ckpt")
        assert (resumed.joined, resumed.divided.keys()) == (through.joined, through.divided.keys())
        for one, other in zip(through.networks, resumed.networks, strict=True):
            assert differing(one, other) == []
        assert differing(whole(through), whole(resumed)) == []
    assert any(waiting)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"eps1": -0.1}, "eps1=-0.1 is not allowed: a finite number >= 0"),
        ({"eps1": math.nan}, "eps1=nan is not allowed: a finite number >= 0"),
        ({"eps1": 0.5, "eps2": 0.4}, "eps2=0.4 is not allowed: a finite number >= eps1, which is 0.5, or null"),
        ({"eps2": math.nan}, "eps2=nan is not allowed"),
        ({"eps2": math.inf}, "eps2=inf is not allowed: a finite number"),
        (
            {"eps2": 2.0, "dynamics": Dynamics(start="merged")},
            "dynamics.start='merged' is not allowed: method in CFL: a client starts from the network of its cluster",
        ),
        ({"aggregator": Krum()}, "aggregator='Krum' is not allowed: none in CFL, as a cluster may be a single client"),
        ({"merge_optimizer": sgd(1.0)}, "null in CFL, as a cluster may be a single client"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(CFL, **options)


def test_its_config_runs_alone_and_tells_of_clusters_as_they_come(terminal: Terminal) -> None:
    parting = ["--model.eps1=0.1", "--model.eps2=0.15", "--trainer.max_epochs=3", "--client_metrics.every=1"]
    code, _, err = terminal.types("fit", "--config=configs/methods/cfl.yaml", *SMALL, *parting)
    assert (code, err) == (0, "")
    (path,) = terminal.folder.glob("runs/*/version_0/rounds.jsonl")
    first, *_, last = (json.loads(line)["scalars"] for line in path.read_text().splitlines())
    assert (first["cluster/count"], last["cluster/count"]) == (1, 2)
    assert first["cluster/longest_update_0"] > first["cluster/mean_update_0"] > 0
    with path.with_name("metrics.csv").open() as file:
        one, *_, three = csv.DictReader(file)
    assert (one["cluster/clients_0"], one["cluster/clients_1"], three["cluster/clients_0"]) == ("2.0", "", "")
    assert float(three["cluster/clients_1"] or 0) + float(three["cluster/clients_2"] or 0) >= 1
