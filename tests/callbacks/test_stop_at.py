"""Budgets end a run after the round that uses them up, in one go, after a kill, and when it is started once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_sfl.callbacks import RoundRecord, StopAt, Traffic, UpdateCounts
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import GAS, SFL, SFLV1, FedAvg, SplitMethod
from lightning_sfl.records.folders import has_all_rounds
from lightning_sfl.records.manifest import read_manifest
from tests.conformance.test_contract import checkpointed
from tests.tiny import build, fit, rows

SIZES = (5, 4, 9)
TOTALS = {
    "server_steps": "count/server_steps_total",
    "client_steps": "count/client_steps_total",
    "samples": "count/samples_main_total",
    "megabytes": "traffic/total_bytes",
}


def run(folder: Path, cls: type[SplitMethod] = SFL, rounds: int = 12, **budget: Any) -> list[dict[str, Any]]:
    """The records of a run, as numbers by tag."""
    callbacks = [UpdateCounts(), Traffic(), RoundRecord(), StopAt(**budget)]
    fit(build(cls, batch_size=4), rows(SIZES), rounds, callbacks, default_root_dir=folder)
    return [json.loads(line)["scalars"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cls", [SFL, SFLV1, GAS])
@pytest.mark.parametrize("unit", TOTALS)
def test_the_round_that_uses_the_budget_up_is_the_last(cls: type[SplitMethod], unit: str, tmp_path: Path) -> None:
    scale = 1e-6 if unit == "megabytes" else 1
    free = [record[TOTALS[unit]] * scale for record in run(tmp_path / "free", cls, rounds=6)]
    for used, rounds in ((free[3], 4), (free[3] + scale, 5), (free[0], 1)):
        budget = used if unit == "megabytes" else int(used)
        records = run(tmp_path / f"{budget}", cls, **{unit: budget})
        assert len(records) == rounds
        assert [record[TOTALS[unit]] * scale for record in records] == free[:rounds]
        facts = read_manifest(tmp_path / f"{budget}")
        assert facts["stop_at"] == {unit: budget}
        assert facts["stopped"] == {"rounds": rounds, unit: pytest.approx(free[rounds - 1])}


def test_the_first_of_several_budgets_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(tmp_path, server_steps=30, client_steps=7, samples=10_000)) == 2
    assert "stopped after 2 rounds: the budget is used up (12 of 7 client steps)" in capsys.readouterr().out


def test_rounds_that_run_out_first_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(tmp_path, rounds=2, megabytes=50.0)) == 2
    said = capsys.readouterr().out
    assert "budget not reached: 0.00" in said
    assert "of 50 MB; trainer.max_epochs=2 came first" in said
    assert "stopped" not in read_manifest(tmp_path)


def test_a_method_without_a_server_never_uses_up_server_steps(tmp_path: Path) -> None:
    assert len(run(tmp_path, FedAvg, rounds=2, server_steps=1)) == 2


def test_counts_go_on_after_a_resume_and_no_further_round_is_done(tmp_path: Path) -> None:
    """Six client steps a round: 27 are used up after five rounds, wherever the run was interrupted."""
    options: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}

    def train(rounds: int, resume: Path | None = None) -> int:
        stop = StopAt(client_steps=27)
        callbacks = [RoundRecord(), stop, checkpointed(tmp_path)]
        method = fit(build(SFL, batch_size=4), rows(SIZES), rounds, callbacks, resume, **options)
        assert stop.used["client_steps"] == 6 * method.trainer.current_epoch
        return int(method.trainer.current_epoch)

    assert train(3) == 3
    assert train(12, tmp_path / "epoch=2.ckpt") == 5
    before = (tmp_path / "rounds.jsonl").read_bytes()
    assert train(12, tmp_path / "epoch=4.ckpt") == 5
    assert (tmp_path / "rounds.jsonl").read_bytes() == before
    assert read_manifest(tmp_path)["stopped"] == {"rounds": 5, "client_steps": 30}


def test_a_stopped_run_has_all_its_rounds(tmp_path: Path) -> None:
    run(tmp_path / "budget", samples=40)
    run(tmp_path / "free", rounds=3)
    for name, complete in {"budget": True, "free": False}.items():
        (tmp_path / name / "config.yaml").write_text("trainer: {max_epochs: 12}\n")
        assert has_all_rounds(tmp_path / name, 12) is complete


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({"server_steps": 0}, "stop_at.server_steps=0 is not allowed: an integer >= 1, or null"),
        ({"client_steps": -3}, "stop_at.client_steps=-3 is not allowed: an integer >= 1, or null"),
        ({"samples": 0}, "stop_at.samples=0 is not allowed: an integer >= 1, or null"),
        ({"megabytes": 0.0}, "stop_at.megabytes=0.0 is not allowed: a finite number > 0, or null"),
        ({"megabytes": float("nan")}, "stop_at.megabytes=nan is not allowed: a finite number > 0, or null"),
    ],
)
def test_wrong_budgets_are_refused(budget: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed") as refusal:
        StopAt(**budget)
    assert str(refusal.value) == named
