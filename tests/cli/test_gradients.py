"""`train.py gradients` on a real checkpoint."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from lightning_sfl.entry import main
from tests.cli.terminal import SFL, SMALL, Terminal

METHOD = """
from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.methods.base import SplitMethod


class Half(SplitMethod):
    def serve(self, uploads):
        return self.train_server([uploads])


class Empty(SplitMethod):
    pass


class Lost(SplitMethod):
    def serve(self, uploads):
        raise RuntimeError("a mistake of mine")
"""
SHUFFLED = "model:\n  class_path: USFL\n  init_args:\n    participants: 7\n    gradient_shuffle: {strategy: random}\n"


@pytest.fixture
def run(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A folder with a run, and a terminal that reaches every command."""
    code, _, err = terminal.types("fit", SFL, *SMALL, "--model.batch_size=4")
    assert code == 0, err
    terminal.writes("mine_too.py", METHOD)
    terminal.writes("shuffled.yaml", SHUFFLED)
    monkeypatch.setattr("tests.cli.terminal.main", main)
    return terminal


def digest(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_same_every_time_and_the_run_stays_as_it_is(run: Terminal) -> None:
    folder, before = "runs/sfl/version_0", digest(run.folder / "runs")
    newest = str(next((run.folder / folder / "checkpoints").glob("round-000001.ckpt")).relative_to(run.folder))
    written = []
    for out in ("a", "b"):
        asked = ("SFL", "mine_too.Half", "shuffled.yaml", "USFL", "FedAvg")
        code, screen, err = run.types("gradients", folder, newest, "--methods", *asked, "--out", out)
        assert code == 0, err
        written.append({Path(name).name: text for name, text in digest(run.folder / out).items()})
    assert written[0] == written[1]
    assert set(written[0]) == {
        "gradients.md", "gradients.csv", "gradients.json", "cosines.csv",
        "cosines_1.svg", "cosines_2.svg", "norms_1.svg", "norms_2.svg",
    }  # fmt: skip
    assert digest(run.folder / "runs") == before
    assert "2 clients of round 2, 8 rows in 1 step" in screen
    first, second = json.loads((run.folder / "a" / "gradients.json").read_text())["checkpoints"]
    assert first["checkpoint"] == second["checkpoint"] == newest
    assert first["methods"] == second["methods"]
    assert first["labels"] == ["SFL", "Half", "shuffled", "USFL", "FedAvg", "oracle"]
    figures = {one["label"]: one for one in first["methods"]}
    assert figures["Half"]["client_norm"] == pytest.approx(figures["SFL"]["client_norm"] / 2, rel=1e-4)
    assert figures["FedAvg"]["server_steps"] == 0
    assert 0 < figures["FedAvg"]["client_C"] < 2
    assert figures["Half"]["client_C"] == pytest.approx(figures["SFL"]["client_C"], rel=1e-3)  # of directions alone
    with (run.folder / "a" / "cosines.csv").open(newline="") as file:
        pairs = {(r["block"], r["one"], r["other"]): float(r["cosine"]) for r in csv.DictReader(file)}
    assert pairs["client", "SFL", "Half"] == pytest.approx(1, abs=1e-6)
    assert pairs["client", "shuffled", "USFL"] < 0.999


def test_all_methods_that_come_along_are_asked_by_default(run: Terminal) -> None:
    code, screen, err = run.types("gradients", "runs/sfl/version_0", "--participants", "3", "--local_steps", "2")
    assert code == 0, err
    assert "3 clients of round 2, 24 rows in 2 steps" in screen
    assert [line.split()[0] for line in screen.splitlines() if line][-8:]
    for name in ("SFL", "GAS", "MultiSFL", "FedSGD", "Centralized", "USFL", "oracle"):
        assert f"\n{name} " in screen


def test_what_cannot_work_is_refused_in_one_line(run: Terminal) -> None:
    folder = "runs/sfl/version_0"
    run.writes("list.yaml", "- 1\n")
    run.writes("bare.yaml", "data: {}\n")
    run.writes("wrong.yaml", "model: {class_path: USFL, init_args: {balancin: 3}}\n")
    cases = {
        ("nowhere",): "checkpoint='nowhere' is not allowed",
        (folder, "--methods", "Nix"): "no method called 'Nix'",
        (folder, "--methods", "mine_too.Nix"): "mine_too.Nix",
        (folder, "--methods", "mine_too.Empty"): "Empty has no serve()",
        (folder, "--methods", "no.yaml"): "methods='no.yaml'",
        (folder, "--methods", "list.yaml"): "list.yaml",
        (folder, "--methods", "bare.yaml"): "a file with model.class_path",
        (folder, "--methods", "wrong.yaml"): "balancin",
        (folder, "--participants", "0"): "participants=0",
        (folder, "--round", "-1"): "round=-1",
        (folder, "--out", "shuffled.yaml"): "out='shuffled.yaml' is not allowed: a folder",
        (f"{folder}/config.yaml",): "a checkpoint",
        (f"{folder}/run.json",): "a checkpoint",
        (): "CHECKPOINT",
        (folder, "--method", "SFL"): "--method",
    }
    for arguments, expected in cases.items():
        assert expected in run.is_refused("gradients", *arguments), arguments


def test_a_damaged_checkpoint_is_refused(run: Terminal) -> None:
    path = next((run.folder / "runs").rglob("round-000001.ckpt"))
    path.write_bytes(path.read_bytes()[:-200])
    assert "checkpoint" in run.is_refused("gradients", str(path))


def test_a_mistake_in_a_method_is_not_hidden(run: Terminal) -> None:
    with pytest.raises(RuntimeError, match="a mistake of mine"):
        run.types("gradients", "runs/sfl/version_0", "--methods", "mine_too.Lost")


def test_help_teaches(run: Terminal) -> None:
    code, out, _ = run.types("gradients", "--help")
    assert code == 0
    assert "train.py gradients runs/sfl/version_0" in out
