"""Real runs of the Trainer with everything watching."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sfl.callbacks import (
    Drift,
    FirstScreen,
    GradientDissimilarity,
    InitialDistance,
    OracleDistance,
    ProbeAlignment,
    RoundProgress,
    RoundRecord,
    default_callbacks,
)
from lightning_sfl.methods import SFL, Centralized, FedAvg, SplitLearning
from lightning_sfl.records.round_log import read_rounds
from tests import tiny
from tests.every_method import METHODS, PERSISTENT
from tests.tiny import build, differing, network, rows, sgd, whole

# The CSV logger warns that it will delete its old file: the rounds in it are given back.
pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")

OPTIONS: dict[str, Any] = {"participants": 2, "batch_size": 2, "server_optimizer": sgd(0.1, 0.9)}


def trainer(rounds: int, callbacks: list[Callback], **options: Any) -> Trainer:
    return tiny.trainer(rounds, callbacks, **({"limit_val_batches": 1.0} | options))


def run(folder: Path, rounds: int, resume: Path | None = None, tensorboard: bool = False, **options: Any) -> None:
    loggers = [CSVLogger(folder, name="", version="run")]
    if tensorboard:
        loggers.append(TensorBoardLogger(folder, name="", version="run"))
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    fit = trainer(
        rounds, [*default_callbacks(progress_bar=False), saving], logger=loggers, enable_checkpointing=True, **options
    )
    fit.fit(build(SFL, network(), **OPTIONS), rows(), ckpt_path=resume)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("cls", METHODS)
def test_watching_changes_nothing(cls: Any, tmp_path: Path) -> None:
    found = []
    own = [OracleDistance(1, capture, "individual", cut=True) for capture in ("frozen", "live")]
    optional = [ProbeAlignment(), OracleDistance(1, "live"), OracleDistance(1), *own, GradientDissimilarity(1)]
    for callbacks in ([], [*default_callbacks(progress_bar=False), Drift(1, anchor=True), *optional]):
        method = build(cls, network(dropout=0.3, norm=True), **OPTIONS)
        torch.manual_seed(5)
        trainer(2, callbacks, default_root_dir=tmp_path).fit(method, rows())
        found.append((whole(method), torch.get_rng_state()))
    assert differing(found[0][0], found[1][0]) == []
    assert torch.equal(found[0][1], found[1][1])
    assert len(read_rounds(tmp_path / "rounds.jsonl")) == 2


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in (*PERSISTENT, SplitLearning)])
def test_synchronous_clients_start_from_one_state_to_the_bit(cls: Any, tmp_path: Path) -> None:
    method = build(cls, network(norm=True), **OPTIONS)
    trainer(3, [InitialDistance(), RoundRecord()], default_root_dir=tmp_path).fit(method, rows())
    told = [record["scalars"].get("init/dist") for record in read_rounds(tmp_path / "rounds.jsonl")]
    assert told == ([None] * 3 if cls is Centralized else [0.0] * 3)


@pytest.mark.parametrize("cls", [*PERSISTENT, SplitLearning])
def test_others_do_not(cls: Any, tmp_path: Path) -> None:
    trainer(3, [InitialDistance(), RoundRecord()], default_root_dir=tmp_path).fit(build(cls, **OPTIONS), rows())
    assert read_rounds(tmp_path / "rounds.jsonl")[-1]["scalars"]["init/dist"] > 1e-3


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    run(tmp_path, 3, tensorboard=True)
    records = read_rounds(tmp_path / "run" / "rounds.jsonl")
    assert [record["round"] for record in records] == [0, 1, 2]
    assert {record["method"] for record in records} == {"sfl"}
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2"]
    for row, record in zip(table(tmp_path), records, strict=True):
        assert {tag: float(row[tag]) for tag in record["scalars"]} == record["scalars"]
    first = records[0]["scalars"]
    assert {"val/acc", "val/loss", "train/acc", "train/loss", "gdiv/full_rel", "align/cos_pair_client"} <= set(first)
    assert 0 < first["labels/imbalance_round"] < first["labels/imbalance"] < 1
    assert (first["init/dist"], first["cut/scale_rel_mean"]) == (0.0, pytest.approx(1.0, rel=1e-5))
    assert first["drift/agg_residual_client"] < 1e-6
    assert ["matrices" in record for record in records] == [True, False, False]
    kept = records[0]["matrices"]["align/cos_matrix"]
    assert kept["clients"] == list(records[0]["clients"])
    assert kept["upper"] == [pytest.approx(first["align/cos_pair_client"], abs=6e-4)]
    population = rows().population
    assert kept["labels"] == [population.y[population.rows[int(c)]].mode().values for c in kept["clients"]]
    shown = EventAccumulator(str(tmp_path / "run"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("align/cos_pair_client")] == [0, 1, 2]
    assert [event.value for event in shown.Scalars("labels/imbalance")] == pytest.approx([first["labels/imbalance"]])
    assert [event.step for event in shown.Images("align/cos_matrix")] == [0]
    assert "align/norm" in shown.Tags()["histograms"]


@pytest.mark.parametrize("torn", [False, True])
def test_a_resumed_run_leaves_the_same_bytes(tmp_path: Path, torn: bool) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(straight, 4)
    run(stopped, 3)
    log = stopped / "run" / "rounds.jsonl"
    if torn:
        log.write_bytes(log.read_bytes()[:-20])
    run(stopped, 4, resume=stopped / "epoch=1.ckpt")
    assert log.read_bytes() == (straight / "run" / "rounds.jsonl").read_bytes()
    assert table(stopped) == table(straight)


def test_old_evaluations_are_not_written_again(tmp_path: Path) -> None:
    run(tmp_path, 4, check_val_every_n_epoch=2)
    evaluated = ["val/acc" in record["scalars"] for record in read_rounds(tmp_path / "run" / "rounds.jsonl")]
    assert evaluated == [False, True, False, True]


def test_going_on_with_the_same_trainer_keeps_the_record(tmp_path: Path) -> None:
    fit = trainer(2, default_callbacks(progress_bar=False), logger=[CSVLogger(tmp_path, name="", version="run")])
    method = build(SFL, network(), **OPTIONS)
    fit.fit(method, rows())
    fit.fit_loop.max_epochs = 3
    fit.fit(method, rows())
    assert [record["round"] for record in read_rounds(tmp_path / "run" / "rounds.jsonl")] == [0, 1, 2]
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2"]


def test_nothing_is_written_in_a_fast_dev_run(tmp_path: Path) -> None:
    fit = trainer(1, default_callbacks(progress_bar=False), fast_dev_run=True, default_root_dir=tmp_path)
    fit.fit(build(SFL, network(), **OPTIONS), rows())
    assert list(tmp_path.iterdir()) == []


def test_records_hold_plain_numbers(tmp_path: Path) -> None:
    run(tmp_path, 1)
    text = (tmp_path / "run" / "rounds.jsonl").read_text()
    record = json.loads(text)
    assert json.dumps(record, separators=(",", ":")) + "\n" == text
    assert all(type(record["scalars"][tag]) is int for tag in record["scalars"] if tag.endswith(("_steps", "_bytes")))


def test_one_plain_line_per_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = trainer(2, [RoundProgress(), FirstScreen()], enable_progress_bar=True, default_root_dir=tmp_path)
    fit.fit(build(SFL, network(), **OPTIONS), rows())
    *first, one, two = capsys.readouterr().out.splitlines()
    assert any(line.startswith("method") for line in first)
    assert one.startswith("round 1/2  acc 0.")
    assert two.startswith("round 2/2  acc ")
    assert "kB  steps client/server " in two


def test_a_terminal_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = RoundProgress(live=True)
    fit = trainer(2, [progress], enable_progress_bar=True, logger=[CSVLogger(tmp_path)])
    method = build(SFL, network(), **OPTIONS)
    fit.fit(method, rows())
    shown = capsys.readouterr().out
    assert "2/2" in shown.split("\r")[-1]
    assert "steps client/server" in shown
    for name in ("validate", "test", "predict"):
        getattr(fit, name)(method, rows())
        assert f"{name}: 100%" in capsys.readouterr().out
    assert progress.bar is None


def test_a_disabled_bar_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = RoundProgress()
    progress.disable()
    fit = trainer(1, [progress], enable_progress_bar=True, default_root_dir=tmp_path)
    fit.fit(build(FedAvg, network(), **OPTIONS), rows())
    assert "round" not in capsys.readouterr().out


def test_no_record_without_every(tmp_path: Path) -> None:
    trainer(1, [RoundRecord(every=0)], default_root_dir=tmp_path).fit(build(SFL, network(), **OPTIONS), rows())
    assert list(tmp_path.iterdir()) == []
