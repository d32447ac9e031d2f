"""The watchers of methods that send scalars: the auditor, and how good the estimate is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sfl.callbacks import EstimateQuality, ProofCheck, RoundRecord
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.methods import SFL, HoloGrad
from tests import tiny
from tests.tiny import build, differing, network, rows, whole

SIZES = (5, 4, 9, 2)


def watched(folder: Path, watcher: Watcher, rounds: int = 2, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    method = HoloGrad(options.pop("net", None) or network(), "relu1", **{"num_scalars": 40, "scale": "mmse", **options})
    tiny.trainer(rounds, [watcher, RoundRecord()], default_root_dir=folder).fit(method, rows(SIZES))
    return method, [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("projection", ["grad", "jvp"])
def test_honest_clients_pass_whatever_the_network(projection: Any, tmp_path: Path) -> None:
    net = network(0.3, norm=True)
    basis = BasisChoice("subspace", rank=8)
    _, records = watched(tmp_path, ProofCheck(probability=1.0), net=net, projection=projection, basis=basis)
    for record in records:
        assert record["scalars"]["verify/checked"] == 4 * 40
        assert record["scalars"]["verify/rejected"] == 0
        assert record["scalars"]["verify/max_rel_err"] < 1e-5


def test_liars_are_found_and_named(tmp_path: Path) -> None:
    byzantine = Byzantine(0.25, "sign_flip")
    (liar,) = byzantine.liars(0, 4)
    _, records = watched(tmp_path, ProofCheck(probability=0.5), byzantine=byzantine)
    for record in records:
        for client, fields in record["clients"].items():
            rejected = fields["proofs_checked"] if int(client) == liar else 0
            assert fields["proofs_rejected"] == rejected
            assert 5 < fields["proofs_checked"] < 35
        assert record["scalars"]["verify/max_rel_err"] > 1


def test_nothing_is_checked_where_nothing_is_chosen(tmp_path: Path) -> None:
    _, records = watched(tmp_path, ProofCheck(probability=0.0), byzantine=Byzantine(0.5))
    assert [record["scalars"]["verify/checked"] for record in records] == [0, 0]
    with pytest.raises(ConfigError, match=r"probability=2 is not allowed"):
        ProofCheck(probability=2)


def test_quality_of_an_exact_and_of_a_random_estimate(tmp_path: Path) -> None:
    exact = {"num_scalars": 151, "directions": "orthogonal"}
    _, records = watched(tmp_path / "exact", EstimateQuality(), **exact)
    for record in records:
        assert record["scalars"]["holograd/cos_true"] == pytest.approx(1, abs=1e-5)
        assert record["scalars"]["holograd/error_rel"] < 1e-4
    _, records = watched(tmp_path / "random", EstimateQuality(), rounds=40)
    cosines = torch.tensor([record["scalars"]["holograd/cos_true"] for record in records])
    errors = torch.tensor([record["scalars"]["holograd/error_rel"] for record in records])
    assert cosines.square().mean() == pytest.approx(40 / 190, rel=0.15)
    assert errors.square().mean() == pytest.approx(150 / 190, rel=0.1)


def test_share_of_the_gradient_inside_the_momentum(tmp_path: Path) -> None:
    _, records = watched(tmp_path, EstimateQuality(), rounds=6, basis=BasisChoice("momentum"))
    captured = [record["scalars"]["holograd/captured"] for record in records]
    assert captured[0] == 0
    assert all(0 < share < 1 for share in captured[1:])
    assert captured[-1] > captured[1] * 0.9


@pytest.mark.parametrize("watcher", [EstimateQuality, lambda: ProofCheck(probability=1.0)])
def test_watching_changes_nothing(watcher: Any, tmp_path: Path) -> None:
    found = []
    for watchers in ([], [watcher()]):
        method = HoloGrad(network(0.3, norm=True), "relu1", num_scalars=40)
        torch.manual_seed(5)
        tiny.trainer(2, watchers, default_root_dir=tmp_path).fit(method, rows(SIZES))
        found.append((whole(method), torch.get_rng_state()))
    assert differing(found[0][0], found[1][0]) == []
    assert torch.equal(found[0][1], found[1][1])


def test_other_methods_have_nothing_to_say(tmp_path: Path) -> None:
    watching = [EstimateQuality(), ProofCheck(), RoundRecord()]
    tiny.trainer(1, watching, default_root_dir=tmp_path).fit(build(SFL), rows(SIZES))
    record = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert not [tag for tag in record["scalars"] if tag.startswith(("holograd/", "verify/"))]
