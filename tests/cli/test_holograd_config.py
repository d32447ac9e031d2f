"""HoloGrad from the command line: the shipped config, every option, its watchers, and wrong values."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_sfl.methods import HoloGrad
from lightning_sfl.sweep_plan import Sweep, read_sweep
from tests.cli.terminal import SMALL, Terminal

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/methods/holograd.yaml"
ENOUGH = [*SMALL, "--data.source.rows=300"]


def rounds(terminal: Terminal) -> list[dict[str, Any]]:
    (path,) = terminal.folder.glob("runs/*/version_0/rounds.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_config_runs_and_holds_the_defaults(terminal: Terminal) -> None:
    code, _, err = terminal.types("fit", CONFIG, *ENOUGH)
    assert code == 0, err
    scalars = rounds(terminal)[-1]["scalars"]
    clients = scalars["count/participants"]
    assert scalars["comm/payload_bytes"] == clients * (272 + 296)
    assert scalars["traffic/scalars_up_bytes"] == clients * 272
    settings = yaml.safe_load((ROOT / "configs/methods/holograd.yaml").read_text())["model"]["init_args"]
    for key, parameter in inspect.signature(HoloGrad).parameters.items():
        default = parameter.default
        if default is not inspect.Parameter.empty:
            assert settings[key] == (vars(default) if hasattr(default, "__post_init__") else default), key


def test_every_option_at_once_and_both_watchers(terminal: Terminal) -> None:
    options = [
        "--model.num_scalars=40", "--model.scale=unbiased", "--model.projection=grad", "--model.basis.kind=subspace",
        "--model.basis.rank=8", "--model.robust.rule=trimmed_mean", "--model.robust.trim=0.34",
        "--model.participants=3",
        "--model.synchronisation=state", "--model.byzantine={share: 0.5, attack: sign_flip}",
        "--model.stragglers.collect=window", "--trainer.callbacks+=EstimateQuality", "--trainer.callbacks+=ProofCheck",
        "--trainer.callbacks.probability=1.0",
    ]  # fmt: skip
    code, _, err = terminal.types("fit", CONFIG, *ENOUGH, *options)
    assert code == 0, err
    for record in rounds(terminal):
        scalars = record["scalars"]
        assert 0 <= scalars["holograd/captured"] <= 1
        assert scalars["verify/checked"] == 40 * scalars["count/participants"]
        rejected = {fields["proofs_rejected"] for fields in record["clients"].values()}
        assert rejected <= {0, 40}
        assert scalars["comm/with_sync_bytes"] > scalars["comm/payload_bytes"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("--model.num_scalars=0", "num_scalars=0 is not allowed"),
        ("--model.scale=mse", "scale='mse'"),
        ("--model.directions=gaussian", "directions='gaussian'"),
        ("--model.basis.kind=momentu", "basis.kind='momentu'"),
        ("--model.basis={kind: subspace, rank: 60}", "num_scalars=64 is not allowed: an integer >= 76"),
        ("--model.robust.trim=0.5", "robust.trim=0.5 is not allowed"),
        ("--model.byzantine={share: 2}", "byzantine.share=2.0 is not allowed"),
        ("--model.stragglers.first=0", "stragglers.first=0 is not allowed"),
    ],
)
def test_wrong_values_are_refused_in_one_line(setting: str, named: str, terminal: Terminal) -> None:
    assert named in terminal.is_refused("fit", CONFIG, setting)


def test_the_sweep_for_the_docs_is_one() -> None:
    points = Sweep(**read_sweep(str(ROOT / "configs/experiments/holograd_digits.yaml"))).points()
    assert len(points) == 12
    assert len({point.name for point in points}) == 12
