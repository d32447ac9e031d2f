"""Alignment and divergence layer by layer: parts that add up to the whole, under the layers' own names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sfl.callbacks import CosineAlignment, GradientDivergence, RoundRecord
from lightning_sfl.callbacks.rows import Layers, row_of
from lightning_sfl.methods import SFL, FedAvg, MultiSFL
from lightning_sfl.records.round_log import read_rounds
from tests import tiny

BELOW, ABOVE = ("fc1", "bn1"), ("fc2", "bn2", "head")


def scalars_of(folder: Path, cls: Any, watchers: list[Any], **options: Any) -> dict[str, float]:
    method = tiny.build(cls, tiny.network(dtype=torch.float64, norm=True), **options)
    fit = tiny.trainer(1, [*watchers, RoundRecord()], default_root_dir=folder, precision="64-true")
    fit.fit(method, tiny.rows((5, 4, 9), dtype=torch.float64))
    found: dict[str, float] = read_rounds(folder / "rounds.jsonl")[0]["scalars"]
    return found


def test_a_row_falls_into_layers() -> None:
    half = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False)))
    half[0].bias.requires_grad_(False)
    half.register_parameter("free", nn.Parameter(torch.zeros(4)))
    layers = Layers(half)
    assert {name: layers.size(name) for name in layers.places} == {"free": 4, "0": 6, "1.0": 6, "1.1": 3}
    trained = [parameter.detach() for parameter in half.parameters() if parameter.requires_grad]
    pieces = layers.split(row_of(trained))
    for name, module in {"0": half[0], "1.0": half[1][0], "1.1": half[1][1]}.items():
        own = [parameter.detach().flatten() for parameter in module.parameters() if parameter.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(layers.of(name, pieces), own, strict=True))


def test_divergence_of_layers_adds_up_to_that_of_the_halves(tmp_path: Path) -> None:
    scalars = scalars_of(tmp_path, SFL, [GradientDivergence(layers=True)])
    for half, layers in (("client", BELOW), ("server", ABOVE)):
        for name, power in (("rms", 2), ("splithalf", 1)):
            parts = math.fsum(scalars[f"layer/{layer}/gdiv_{name}"] ** power for layer in layers)
            assert parts == pytest.approx(scalars[f"gdiv/{half}_{name}"] ** power)
    mean = scalars["layer/fc1/gdiv_mean"]
    assert scalars["layer/fc1/gdiv_percoord"] == pytest.approx(mean / math.sqrt(6 * 8 + 8))


def test_alignment_of_a_layer_is_that_of_its_updates(tmp_path: Path) -> None:
    """Ends minus starts of one layer, the three clients alike in weight."""
    recorder = tiny.Recorder()
    scalars = scalars_of(tmp_path, FedAvg, [CosineAlignment(weights="uniform", layers=True), recorder], batch_size=2)
    pairs = list(zip(recorder.starts, recorder.ends, strict=True))
    for layer in BELOW:
        keys = [f"{layer}.weight", f"{layer}.bias"]
        moves = torch.stack([torch.cat([(end[k] - start[k]).flatten() for k in keys]) for start, end in pairs])
        unit = moves / moves.norm(dim=1, keepdim=True)
        cosines = unit @ unit.T
        assert scalars[f"layer/{layer}/cos_pair"] == pytest.approx(float((cosines.sum() - 3) / 6))
        assert scalars[f"layer/{layer}/norm_mean"] == pytest.approx(float(moves.norm(dim=1).mean()))
        ratio = 1 - float(moves.mean(0).square().sum() / moves.square().sum(1).mean())
        assert scalars[f"layer/{layer}/A_ratio"] == pytest.approx(ratio)
        assert scalars[f"layer/{layer}/A_null"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("cls", "shown"), [(SFL, BELOW), (MultiSFL, (*BELOW, *ABOVE))])
def test_layers_of_the_server_where_clients_have_copies_of_it(tmp_path: Path, cls: Any, shown: Any) -> None:
    scalars = scalars_of(tmp_path, cls, [CosineAlignment(layers=True)])
    assert {tag.split("/")[1] for tag in scalars if tag.startswith("layer/") and tag.count("/") == 2} == set(shown)


def test_layers_are_not_there_unasked(tmp_path: Path) -> None:
    scalars = scalars_of(tmp_path, SFL, [CosineAlignment(), GradientDivergence()])
    assert not [tag for tag in scalars if tag.startswith("layer/")]
