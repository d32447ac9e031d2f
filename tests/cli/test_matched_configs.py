"""Overlays that match dynamics do so for every method, as the records tell; budgets and refusals as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

import lightning_sfl.methods
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.records.compare import compare
from lightning_sfl.records.forms import as_text
from lightning_sfl.sweep_plan import Sweep, read_sweep
from tests.cli.terminal import SFL, SMALL, Terminal
from tests.tiny import build, differing, fit, network, rows, whole

ROOT = Path(__file__).resolve().parents[2]
DEMO = "--config=configs/experiments/demo.yaml"
ENOUGH = [*SMALL, "--data.source.rows=300", "--model.local_steps=5", "--cut_scale.every=1"]
COPIES = {"SFLV1": 2, "MultiSFL": 2}
ARMS = ("dynamics_published", "matched_scale", "matched_start", "matched_steps", "matched_all")
GRID: list[Any] = yaml.safe_load((ROOT / "configs/experiments/dynamics_digits.yaml").read_text())["grid"]["run"]
TRAINED = [(entry["model"], Path(entry["config"]).stem) for entry in GRID]
METHODS = list(dict.fromkeys(method for method, _ in TRAINED))
LEFT_OUT = [(method, arm) for method in METHODS for arm in ARMS if (method, arm) not in TRAINED]


def trained(terminal: Terminal, method: str, arm: str, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measured scalars of the second round, and run.json."""
    overlay = f"--config=configs/experiments/{arm}.yaml"
    code, _, err = terminal.types("fit", DEMO, overlay, f"--model={method}", *ENOUGH, *more)
    assert code == 0, err
    (log,) = terminal.folder.glob("runs/*/version_0/rounds.jsonl")
    return json.loads(log.read_text().splitlines()[-1])["scalars"], json.loads((log.parent / "run.json").read_text())


CROSSED = [(method, "matched_all") for method in METHODS]
SINGLE = [
    *((method, "dynamics_published") for method in ("SFL", "SplitLearning", "USFL", "MultiSFL")),
    ("USFL", "matched_scale"),
    ("GAS", "matched_start"),
    ("SFLV2", "matched_steps"),
]


@pytest.mark.parametrize(("method", "arm"), [*CROSSED, *SINGLE])
def test_an_overlay_matches_what_it_says(method: str, arm: str, terminal: Terminal) -> None:
    missing = ["--model.balancing.allow_missing_labels=true"] if method == "USFL" else []
    found, facts = trained(terminal, method, arm, *missing)
    settings = yaml.safe_load((ROOT / f"configs/experiments/{arm}.yaml").read_text())
    assert facts["dynamics"] == Dynamics(**settings["model"]["init_args"]["dynamics"]).matched
    mixed = method == "Mix2SFL"  # one of two clients at most is a member, so that nothing is mixed: floor(0.5 * 2) = 1
    if arm in ("matched_scale", "matched_all"):
        assert found["cut/scale_rel_mean"] == pytest.approx(1.0, rel=1e-3)
    elif arm == "dynamics_published" and (mixed or method == "USFL"):
        assert found["cut/scale_rel_mean"] == pytest.approx(0.5, rel=1e-3)
    if arm in ("matched_start", "matched_all"):
        assert found["init/dist"] == 0
    elif arm == "dynamics_published" and method in ("SplitLearning", "MultiSFL"):
        assert found["init/dist"] > 0
    if arm in ("matched_steps", "matched_all"):
        assert found["count/server_steps"] == 5 * COPIES.get(method, 1)
        assert found["dynamics/server_steps_missing"] == 0
    elif method in ("SFL", "SFLV2", "SplitLearning"):
        assert found["count/server_steps"] == 10


@pytest.mark.parametrize("name", ["dynamics_digits", "dynamics_mnist"])
def test_the_sweeps_cross_methods_and_arms(name: str) -> None:
    sweep = Sweep(**read_sweep(str(ROOT / f"configs/experiments/{name}.yaml")))
    assert sweep.grid["run"] == GRID
    points = sweep.points()
    assert len({point.name for point in points}) == len(points) == len(TRAINED) * len(sweep.seeds)
    assert len(sweep.seeds) >= 3
    assert [method for method, arm in TRAINED if arm == "dynamics_published"] == METHODS


@pytest.mark.parametrize(("method", "arm"), LEFT_OUT)
def test_arms_that_the_sweeps_leave_out_change_nothing(method: str, arm: str) -> None:
    """Five local steps for everybody, as there; clients of unequal size."""
    settings = yaml.safe_load((ROOT / f"configs/experiments/{arm}.yaml").read_text())

    def run(dynamics: Dynamics) -> dict[str, Tensor]:
        options = {"batch_size": 4, "local_steps": 5, "dynamics": dynamics}
        return whole(fit(build(getattr(lightning_sfl.methods, method), network(norm=True), **options), rows(), 2))

    assert differing(run(Dynamics(**settings["model"]["init_args"]["dynamics"])), run(Dynamics())) == []


def test_compare_tells_what_was_matched(terminal: Terminal) -> None:
    for number, (arm, steps) in enumerate((("dynamics_published", "0"), ("matched_all", "30"))):
        overlay = f"--config=configs/experiments/{arm}.yaml"
        more = [f"--model.dynamics.server_steps={steps}", f"--trainer.default_root_dir=runs/{number}"]
        assert terminal.types("fit", DEMO, overlay, *ENOUGH, *more)[0] == 0
    found = compare([terminal.folder / "runs"], last=1)
    text = as_text(found.tables[1])
    assert "client scale own, server steps 30, start merged" in text
    assert any(
        "30 server steps a round were asked for, and its uploads sufficed for 10" in s for s in found.differences
    )
    assert sorted(row.label for row in found.rows) == [
        "SFL client_scale=method server_steps=0 start=method",
        "SFL client_scale=own server_steps=30 start=merged",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["--model.dynamics.client_scale=mean"],
            "model.dynamics.client_scale='mean' is not allowed: method, own or joint",
        ),
        (
            ["--model.dynamics.server_steps=-1"],
            "model.dynamics.server_steps=-1 is not allowed: an integer >= 1, or 0 for",
        ),
        (["--model.dynamics.start=fresh"], "model.dynamics.start='fresh' is not allowed: method or merged"),
        (["--model.dynamics=null"], "model.dynamics=None is not allowed: settings as `name: value` of client_scale"),
        (["--model.dynamics.steps=3"], "no setting called 'dynamics.steps'"),
        (["--model=FedAvg", "--model.dynamics.client_scale=own"], "in FedAvg no server answers uploads"),
        (["--model=FedSGD", "--model.dynamics.server_steps=1"], "in FedSGD no server answers uploads"),
        (["--model=Centralized", "--model.dynamics.server_steps=1"], "in Centralized no server answers uploads"),
        (["--stop_at.samples=0"], "stop_at.samples=0 is not allowed: an integer >= 1, or null"),
        (["--stop_at.server_steps=many"], "stop_at.server_steps='many' is not allowed: an integer or null"),
        (["--stop_at.megabytes=nan"], "stop_at.megabytes=nan is not allowed: a finite number or null"),
        (["--stop_at.rounds=3"], "no setting called 'stop_at.rounds'"),
    ],
    ids=str,
)
def test_is_refused_in_one_line(arguments: list[str], named: str, terminal: Terminal) -> None:
    assert named in terminal.is_refused("fit", SFL, *arguments)


def test_a_budget_ends_a_run_and_its_sweep_point(terminal: Terminal) -> None:
    code, out, err = terminal.types("fit", SFL, *ENOUGH, "--trainer.max_epochs=9", "--stop_at.server_steps=15")
    assert (code, err) == (0, "")
    assert "stopped after 2 rounds: the budget is used up (20 of 15 server steps)" in out
    code, out, err = terminal.types("fit", "--resume", "runs/sfl/version_0", "--stop_at.server_steps=25")
    assert (code, err) == (0, "")
    assert "stopped after 3 rounds" in out
    found = compare([terminal.folder / "runs"], last=1)
    assert any("stopped at its budget, after rounds 3 (seed 0)" in sentence for sentence in found.differences)
