"""Probe alignment, oracle distance and gradient dissimilarity on real rounds, against plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import (
    CosineAlignment,
    GradientDissimilarity,
    GradientDivergence,
    InitialDistance,
    OracleDistance,
    ProbeAlignment,
    RoundRecord,
)
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import GAS, SFL, SFLV1, SFLV2, FedAvg, MiniBatchSFL, MultiSFL
from lightning_sfl.records.round_log import read_rounds
from tests import tiny
from tests.tiny import Rows, build, network, rows, sgd

SIZES = (5, 4, 9)


def records(
    folder: Path, cls: Any, watchers: list[Any], data: Rows | None = None, rounds: int = 1, **options: Any
) -> Any:
    method = build(cls, network(dtype=torch.float64), **{"batch_size": None, **options})
    fit = tiny.trainer(rounds, [*watchers, RoundRecord()], default_root_dir=folder, precision="64-true")
    fit.fit(method, data or rows(SIZES, dtype=torch.float64))
    return read_rounds(folder / "rounds.jsonl")


def gradient(net: nn.Sequential, x: Tensor, y: Tensor, below: int | None = None) -> Tensor:
    """Of the mean loss over the first `below` parameters, all by default."""
    over = list(net.parameters())[:below]
    return torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(net(x), y), over)])


def distance(one: Tensor, other: Tensor) -> float:
    return 1 - float(one @ other / one.norm() / other.norm())


def test_after_one_step_of_sgd_updates_are_gradients(tmp_path: Path) -> None:
    data, net = rows(SIZES, dtype=torch.float64), network(dtype=torch.float64)
    x, y = data.population.x, data.population.y
    probe = ProbeAlignment(max_rows=None)
    (record,) = records(tmp_path, FedAvg, [probe, CosineAlignment()])
    own = [gradient(net, x[r], y[r], 2) for r in data.population.rows]
    mean = sum(size / sum(SIZES) * g for size, g in zip(SIZES, own, strict=True))
    whole = gradient(net, x, y)
    scalars = record["scalars"]
    assert scalars["probe/B_client"] == pytest.approx(distance(mean, gradient(net, x, y, 2)), abs=1e-9)
    pairs = [(SIZES[i] * SIZES[j], 1 - distance(own[i], own[j])) for i in range(3) for j in range(i)]
    between = sum(weight * cosine for weight, cosine in pairs) / sum(weight for weight, _ in pairs)
    assert scalars["align/cos_pair_client"] == pytest.approx(between)
    cosines = [record["clients"][str(c)]["probe_cos"] for c in range(3)]
    assert cosines == pytest.approx([1 - distance(g, whole[: len(mean)]) for g in own])
    spread = sum(size * (1 - c) for size, c in zip(SIZES, cosines, strict=True)) / sum(SIZES)
    assert scalars["probe/C_client"] == pytest.approx(spread)
    assert scalars["probe/B_server"] == pytest.approx(0, abs=1e-9)  # the mean of all rows' gradients is the probe's
    assert scalars["probe/B_full"] == pytest.approx(0, abs=1e-9)
    assert scalars["probe/reversal"] == 0
    assert "probe/C_client_own" not in scalars


def test_part_of_the_rows_is_the_same_part_in_every_round(tmp_path: Path) -> None:
    probe = ProbeAlignment(max_rows=7)
    still = {"client_optimizer": sgd(1e-9), "server_optimizer": sgd(1e-9)}
    first, second = records(tmp_path, SFL, [probe], rounds=2, **still)
    assert len(probe.rows.rows[0]) == 7
    assert first["scalars"]["probe/C_client"] == pytest.approx(second["scalars"]["probe/C_client"], abs=1e-6)


@pytest.mark.parametrize("cls", [MultiSFL, GAS])
def test_clients_with_starts_of_their_own_have_probes_of_their_own(tmp_path: Path, cls: Any) -> None:
    found = records(tmp_path, cls, [ProbeAlignment()], rounds=3, batch_size=2)
    own = [record["scalars"].get("probe/C_client_own") for record in found]
    assert own[0] is None
    assert own[2] is not None
    assert own[2] != found[2]["scalars"]["probe/C_client"]


def test_all_rows_once_have_no_bias_and_the_spread_is_the_divergence(tmp_path: Path) -> None:
    scalars = records(tmp_path, SFL, [OracleDistance(), GradientDivergence()])[0]["scalars"]
    for half in ("client", "server"):
        assert scalars[f"oracle/{half}_bias"] == pytest.approx(0, abs=1e-15)
        assert scalars[f"oracle/{half}_D_cos"] == pytest.approx(0, abs=1e-9)
        assert scalars[f"oracle/{half}_G"] == pytest.approx(scalars[f"oracle/{half}_spread"])
        assert scalars[f"oracle/{half}_spread"] == pytest.approx(scalars[f"gdiv/{half}_rms"] ** 2)


def test_absent_clients_are_a_bias(tmp_path: Path) -> None:
    data, net = rows(SIZES, dtype=torch.float64), network(dtype=torch.float64)
    record = records(tmp_path, SFL, [OracleDistance()], participants=2)[0]
    (absent,) = {"0", "1", "2"} - set(record["clients"])
    x, y, members = data.population.x, data.population.y, [int(c) for c in record["clients"]]
    there = torch.cat([torch.from_numpy(data.population.rows[c]) for c in members])
    expected = gradient(net, x[there], y[there], 2) - gradient(net, x, y, 2)
    assert record["scalars"]["oracle/client_bias"] == pytest.approx(float(expected.square().sum()))
    assert record["scalars"]["oracle/client_G_max"] == max(record["clients"][str(c)]["oracle_G"] for c in members)
    assert absent not in record["clients"]


def test_live_is_frozen_where_each_half_takes_one_step_from_the_start(tmp_path: Path) -> None:
    frozen = records(tmp_path / "f", FedAvg, [OracleDistance()])[0]["scalars"]
    live = records(tmp_path / "l", FedAvg, [OracleDistance(capture="live")])[0]["scalars"]
    for name in ("G", "G_rel", "spread"):
        assert live[f"oracle/client_{name}"] == pytest.approx(frozen[f"oracle/client_{name}"])
    joint = records(tmp_path / "j", MiniBatchSFL, [OracleDistance(capture="live")])[0]["scalars"]
    assert joint["oracle/server_G"] == pytest.approx(0, abs=1e-15)
    scaled = {"client_gradient_scale": "concat_mean"}
    off = records(tmp_path / "s", MiniBatchSFL, [OracleDistance(capture="live")], **scaled)[0]["scalars"]
    assert off["oracle/client_G"] != pytest.approx(live["oracle/client_G"])


def test_live_can_stop_after_some_steps(tmp_path: Path) -> None:
    one, all_of_them = (
        records(tmp_path / str(k), SFL, [OracleDistance(capture="live", batches=k)], batch_size=2)[0]["scalars"]
        for k in (1, None)
    )
    assert one["oracle/client_G"] > all_of_them["oracle/client_spread"]
    assert one["oracle/client_G"] != all_of_them["oracle/client_G"]


# --- the oracle of each client's own start ----------------------------------------------------------------------------


class Starts(tiny.L.Callback):
    """The network that each client starts a round from: its half with its server copy, or with the server's half."""

    def __init__(self) -> None:
        self.nets: list[dict[str, nn.Sequential]] = []

    def on_round_start(self, module: Any, event: Any) -> None:
        self.merged = nn.Sequential(copy.deepcopy(event.client_half), copy.deepcopy(event.server_half))
        self.nets.append({})

    def on_client_start(self, module: Any, event: Any) -> None:
        server = self.merged[1] if event.server_half is None else copy.deepcopy(event.server_half)
        visits = sum(owner(key) == event.client_id for key in self.nets[-1])
        key = f"{event.client_id}.{visits}" if visits else str(event.client_id)
        self.nets[-1][key] = nn.Sequential(copy.deepcopy(event.client_half), server)


def owner(key: str) -> int:
    """The client of a visit."""
    return int(key.split(".", maxsplit=1)[0])


@pytest.mark.parametrize("cls", [MultiSFL, GAS])
def test_the_oracle_at_the_start_of_each_client(tmp_path: Path, cls: Any) -> None:
    data, starts = rows(SIZES, dtype=torch.float64), Starts()
    watchers = [OracleDistance(every=1, scope="individual"), starts]
    found = records(tmp_path, cls, watchers, data, rounds=3, batch_size=2)
    x, y = data.population.x, data.population.y
    for record, nets in zip(found, starts.nets, strict=True):
        own = {key: data.population.rows[owner(key)] for key in nets}
        apart = {key: gradient(net, x[own[key]], y[own[key]]) - gradient(net, x, y) for key, net in nets.items()}
        shares = {key: len(r) / sum(map(len, own.values())) for key, r in own.items()}
        for half, part in (("client", slice(0, 56)), ("server", slice(56, None))):
            squares = {key: float(each[part].square().sum()) for key, each in apart.items()}
            mean = sum(shares[key] * each[part] for key, each in apart.items())
            total = sum(shares[key] * square for key, square in squares.items())
            assert record["scalars"][f"oracle/{half}_G"] == pytest.approx(total)
            assert record["scalars"][f"oracle/{half}_bias"] == pytest.approx(float(mean.square().sum()))
            if half == "client":
                told = {key: fields["oracle_G"] for key, fields in record["clients"].items() if "oracle_G" in fields}
                assert told == pytest.approx(squares)
    assert any(not torch.equal(net[0].fc1.weight, starts.merged[0].fc1.weight) for net in starts.nets[-1].values())


def test_clients_with_the_same_rows_have_the_oracles_gradient_wherever_they_start(tmp_path: Path) -> None:
    one = rows((9,), dtype=torch.float64).population
    twins = Rows(one.x.repeat(3, 1), one.y.repeat(3), tiny.stretches([9, 9, 9]))
    watchers = [OracleDistance(every=1, scope="individual"), InitialDistance()]
    found = [record["scalars"] for record in records(tmp_path, MultiSFL, watchers, twins, 3, batch_size=2)]
    assert found[0]["init/dist"] == 0
    assert found[2]["init/dist"] > 0.01
    assert all(scalars[f"oracle/{half}_G"] < 1e-25 for scalars in found for half in ("client", "server"))


@pytest.mark.parametrize("capture", ["frozen", "live"])
@pytest.mark.parametrize("cls", [SFL, SFLV1, SFLV2])
def test_where_all_start_alike_there_is_one_oracle(tmp_path: Path, cls: Any, capture: Any) -> None:
    one, own = (
        records(tmp_path / scope, cls, [OracleDistance(every=1, capture=capture, scope=scope)], rounds=2, batch_size=4)
        for scope in ("global", "individual")
    )
    scalars = [[record["scalars"] for record in found] for found in (one, own)]
    assert scalars[0] == scalars[1]
    assert "oracle/server_G" in scalars[0][0]


def test_live_is_frozen_where_each_branch_takes_one_step(tmp_path: Path) -> None:
    """Nobody is left to replay from where all take part."""
    frozen, live = (
        records(tmp_path / way, MultiSFL, [OracleDistance(every=1, capture=way, scope="individual")], rounds=3)
        for way in ("frozen", "live")
    )
    for one, other in zip(frozen, live, strict=True):
        for name in ("client_G", "client_bias", "server_G", "server_G_rel", "server_D_cos"):
            assert one["scalars"][f"oracle/{name}"] == pytest.approx(other["scalars"][f"oracle/{name}"])


# --- the V value ------------------------------------------------------------------------------------------------------


class Kept(tiny.L.Callback):
    """The server half at its last step, and the gradient it then had."""

    def on_server_backward(self, module: Any, event: Any) -> None:
        self.half = copy.deepcopy(event.server_half)
        self.gradient = [p.grad.clone() for p in event.server_half.parameters()]


def test_the_v_value_of_the_last_server_step(tmp_path: Path) -> None:
    kept, watcher = Kept(), GradientDissimilarity(batches=3, batch_size=6)
    method = build(SFL, network(dtype=torch.float64), batch_size=2)
    data = rows(SIZES, dtype=torch.float64)
    fit = tiny.trainer(1, [kept, watcher, RoundRecord()], default_root_dir=tmp_path, precision="64-true")
    fit.fit(method, data)
    scalars = read_rounds(tmp_path / "rounds.jsonl")[0]["scalars"]
    batches = watcher.rows.rows[0].reshape(3, 6)
    whole = nn.Sequential(method.client_half, kept.half)
    x, y, servers = data.population.x, data.population.y, list(kept.half.parameters())
    probes = [torch.autograd.grad(cross_entropy(whole(x[b]), y[b]), servers) for b in batches]
    total = sum(
        float((own - sum(found) / 3).square().sum()) for own, *found in zip(kept.gradient, *probes, strict=True)
    )
    assert scalars["dissimilarity/PV"] == pytest.approx(total)
    assert scalars["dissimilarity/V"] == pytest.approx(total / len(servers))


@pytest.mark.parametrize("cls", [FedAvg, MultiSFL])
def test_without_one_server_half_there_is_no_v_value(tmp_path: Path, cls: Any) -> None:
    (record,) = records(tmp_path, cls, [GradientDissimilarity()], batch_size=2)
    assert not [tag for tag in record["scalars"] if tag.startswith("dissimilarity")]


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for make in (
        lambda: ProbeAlignment(max_rows=0),
        lambda: OracleDistance(batches=2),
        lambda: OracleDistance(capture="live", batches=0),
        lambda: OracleDistance(max_rows=0),
        lambda: OracleDistance(scope="branch"),  # type: ignore[arg-type]
        lambda: OracleDistance(capture="thawed"),  # type: ignore[arg-type]
        lambda: GradientDissimilarity(batch_size=0),
    ):
        with pytest.raises(ConfigError, match="is not allowed"):
            make()
    data = rows(SIZES, dtype=torch.float64)
    data.eval_set = "test"
    with pytest.raises(ConfigError, match=r"probe_alignment.source='val' is not allowed: test where"):
        records(tmp_path, SFL, [ProbeAlignment()], data)


def test_who_is_off_hears_of_no_steps() -> None:
    for watcher in (OracleDistance(every=0, capture="live"), OracleDistance(), GradientDissimilarity(every=0)):
        assert not hasattr(watcher, "on_server_backward")
        assert not hasattr(watcher, "on_client_backward")
