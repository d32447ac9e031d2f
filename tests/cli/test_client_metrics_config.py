"""Client metrics from the command line, with and without a cut; the config of five clients; Weights & Biases."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sfl.data import IID, FederatedData, Synthetic
from tests.cli.terminal import SMALL, Terminal

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/experiments/five_clients.yaml"
DIGITS = [
    "--data.source=Digits", "--data.partition.size=40", "--model.backbone=DigitsCNN", "--model.cut_layer=pool",
    "--model.local_epochs=1", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def records(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("runs/*/version_0/rounds.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown_of(clients: int, record: dict[str, Any]) -> dict[str, float]:
    """What loggers are to be given of each client in a round, by tag: as its own fields of the record say."""
    told = {}
    for client in map(str, range(clients)):
        came = record["clients"].get(client, {}).items()  # other watchers have fields there, too
        own = {field: value for field, value in came if field.startswith(("local_", "duration_s", "staleness"))}
        told |= {
            f"client_{client}/{name}": float(value) for name, value in {**record["population"][client], **own}.items()
        }
    return told


@pytest.mark.parametrize("method", ["SFL", "FedAvg"])
def test_values_stand_in_records_csv_and_tensorboard(method: str, terminal: Terminal) -> None:
    options = ["--client_metrics.every=1", "--client_metrics.curves=3", "--data.client_val_fraction=0.2"]
    code, out, err = terminal.types("fit", f"--config=configs/methods/{method.lower()}.yaml", *SMALL, *options)
    assert (code, err) == (0, "")
    assert "rows: 42 with clients and 12 that they keep to be judged on, 6 held out, 0 unused" in out
    last = records(terminal.folder)[-1]
    assert [*last["population"]] == ["0", "1", "2"]
    (run,) = terminal.folder.glob("runs/*/version_0")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    board = EventAccumulator(str(run))
    board.Reload()
    drawn = {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}
    for record, row in zip(records(terminal.folder), rows, strict=True):
        shown, index = shown_of(3, record), record["round"]
        assert {f"client_0/{name}" for name in ("selected", "merged_val_acc")} <= {*shown}
        assert sum(shown[f"client_{client}/selected"] for client in range(3)) == 2
        assert (
            sum(f"client_{client}/{name}" in shown for client in range(3) for name in ("duration_s", "staleness")) == 4
        )
        assert {tag: record["scalars"].get(tag) for tag in shown} == shown
        written = {tag: float(value) for tag, value in row.items() if tag.startswith("client_") and value != ""}
        assert written == pytest.approx(shown, rel=1e-6)
        assert {tag: drawn[tag].get(index) for tag in shown} == pytest.approx(shown, rel=1e-6)
        assert {tag for tag, values in drawn.items() if tag.startswith("client_") and index in values} == {*shown}
    worst = min(fields["merged_val_acc"] for fields in last["population"].values())
    assert board.Scalars("client/merged_val_acc_worst")[-1].value == pytest.approx(worst, rel=1e-6)
    assert "client/selected" in board.Tags()["histograms"]


def test_a_resumed_run_has_the_same_records(terminal: Terminal) -> None:
    common = ["fit", "--config=configs/methods/fedbuff.yaml", *SMALL, "--client_metrics.every=1"]
    assert terminal.types(*common, "--trainer.max_epochs=4", "--trainer.default_root_dir=whole")[0] == 0
    assert terminal.types(*common, "--trainer.max_epochs=2")[0] == 0
    assert terminal.types("fit", "--resume=runs/fedbuff/version_0", "--trainer.max_epochs=4")[0] == 0
    one, other = (terminal.folder / place / "fedbuff/version_0/rounds.jsonl" for place in ("runs", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_five_clients_have_five_and_one_thousand_rows() -> None:
    settings = yaml.safe_load((ROOT / CONFIG).read_text())
    given = settings["data"]
    data = FederatedData(
        Synthetic(rows=40_000, test_rows=10),
        IID(**given["partition"]["init_args"]),
        given["num_clients"],
        client_val_fraction=given["client_val_fraction"],
    )
    data.setup()
    assert data.population.sizes == [5000] * 5
    assert [len(rows) for rows in data.population.kept] == [1000] * 5
    assert settings["trainer"]["max_epochs"] == 5
    wanted = {"participants": 5, "local_epochs": 10, "batch_size": 32}
    assert {key: settings["model"]["init_args"][key] for key in wanted} == wanted


@pytest.mark.parametrize("method", ["FedAvg", "SFL"])
def test_the_config_runs_with_and_without_a_cut(method: str, terminal: Terminal) -> None:
    code, _, err = terminal.types("fit", f"--config={CONFIG}", *DIGITS, f"--model={method}")
    assert (code, err) == (0, "")
    for record in records(terminal.folder):
        assert [*record["clients"]] == [*record["population"]] == ["0", "1", "2", "3", "4"]
        assert {f"client_{c}/local_val_acc" for c in range(5)} <= {*record["scalars"]}


REFUSED = [
    (["--client_metrics.every=1", "--client_metrics.max_rows=0"], ["client_metrics.max_rows=0", ">= 1, or null"]),
    (["--client_metrics.every=1", "--client_metrics.train_rows=false"], ["train_rows=False", "client_val_fraction"]),
    (["--data.client_val_fraction=1"], ["client_val_fraction=1.0", "from 0 to below 1"]),
    (["--data.partition=IID", "--data.partition.size=0"], ["size=0 is not allowed", "1 or more"]),
    (["--data.partition=IID", "--data.partition.size=99"], ["size=99 is not allowed: at most 18: 54 rows for 3"]),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_is_refused(arguments: list[str], words: list[str], terminal: Terminal) -> None:
    line = terminal.is_refused("fit", "--config=configs/methods/fedavg.yaml", *SMALL, *arguments)
    assert [word for word in words if word not in line] == []


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--trainer.logger=WandbLogger", "--trainer.logger+=WandbLogger"])
def test_without_its_package_the_logger_is_refused(
    form: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sfl.config_checks.find_spec", lambda name: None)
    line = terminal.is_refused("fit", "--config=configs/methods/fedavg.yaml", *SMALL, form)
    assert line.startswith("error: trainer.logger='WandbLogger' is not allowed: only with its package: pip install")


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_a_run_offline_has_the_values_of_every_client(tmp_path: Path) -> None:
    """In a process of its own: the client of Weights & Biases starts others, and leaves hooks behind."""
    command = [sys.executable, str(ROOT / "train.py"), "fit", f"--config={ROOT / CONFIG}", *DIGITS]
    command += ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.save_dir=runs"]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    record = records(tmp_path)[-1]
    last = record["scalars"]
    (path,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    logged = path.read_bytes()
    shown = [*shown_of(5, record)]
    assert {"client_0/selected", "client_4/duration_s", "client_4/staleness", "client_4/local_val_loss"} <= {*shown}
    for tag in ["val/acc", "client/merged_val_acc_worst", "client/local_val_loss_mean", *shown]:
        assert tag.encode() in logged
        assert str(last[tag]).encode() in logged, tag
