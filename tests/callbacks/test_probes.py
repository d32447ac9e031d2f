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
    GradientDissimilarity,
    GradientDivergence,
    OracleDistance,
    ProbeAlignment,
    RoundRecord,
)
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import GAS, SFL, FedAvg, MiniBatchSFL, MultiSFL
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
    (record,) = records(tmp_path, FedAvg, [probe])
    own = [gradient(net, x[r], y[r], 2) for r in data.population.rows]
    mean = sum(size / sum(SIZES) * g for size, g in zip(SIZES, own, strict=True))
    whole = gradient(net, x, y)
    scalars = record["scalars"]
    assert scalars["probe/B_client"] == pytest.approx(distance(mean, gradient(net, x, y, 2)), abs=1e-9)
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
