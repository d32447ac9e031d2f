"""CA2FL, and the largest staleness of all four methods, from the command line: what stands in the records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.terminal import SMALL, Terminal

SETTING = [
    *SMALL, "--data.source.rows=125", "--data.num_clients=6", "--model.participants=5", "--model.local_epochs=1",
    "--trainer.max_epochs=4",
]  # fmt: skip
TWO = {"fedasync": "--model.arrivals=2"}
METHODS = ["fedbuff", "ca2fl", "fedasync", "gas"]


def records(terminal: Terminal, method: str, folder: str = "runs") -> list[dict[str, Any]]:
    """Of the newest run."""
    newest = max((terminal.folder / folder / method).glob("version_*"))
    return [json.loads(line) for line in (newest / "rounds.jsonl").read_text().splitlines()]


def trained(terminal: Terminal, method: str, *arguments: str, folder: str = "runs") -> list[dict[str, Any]]:
    two, root = TWO.get(method, "--model.model_buffer=2"), f"--trainer.default_root_dir={folder}"
    code, _, err = terminal.types("fit", f"--config=configs/methods/{method}.yaml", *SETTING, two, root, *arguments)
    assert (code, err) == (0, "")
    return records(terminal, method, folder)


def series(found: list[dict[str, Any]], tag: str) -> list[Any]:
    return [one["scalars"].get(tag) for one in found]


@pytest.mark.parametrize("method", METHODS)
def test_who_is_late_is_dropped_and_counted(method: str, terminal: Terminal) -> None:
    usual, found = trained(terminal, method), trained(terminal, method, "--model.max_staleness=0")
    assert series(usual, "staleness/dropped") == [None] * 4
    assert max(series(usual, "staleness/max")) > 0
    assert series(found, "staleness/max") == [0] * 4
    dropped = series(found, "staleness/dropped")
    assert sum(dropped) > 0
    assert series(found, "count/finished") == [2] * 4
    for one, count in zip(found, dropped, strict=True):
        shares = [client["w"] for client in one["clients"].values() if not client["finished"]]
        assert shares == [0] * len(shares)
        assert len(shares) >= count
    assert series(found, "val/loss")[-1] != series(usual, "val/loss")[-1]


def test_client_metrics_tell_how_late_they_were(terminal: Terminal) -> None:
    found = trained(terminal, "fedbuff", "--model.max_staleness=0", "--client_metrics.every=1")
    for one in found:
        late = [client for client in one["clients"].values() if not client["finished"] and client["staleness"] > 0]
        judged = [client for client in one["clients"].values() if "local_train_loss" in client]
        assert len(late) >= one["scalars"]["staleness/dropped"]
        assert [(client["finished"], client["staleness"]) for client in judged] == [(True, 0)] * 2


@pytest.mark.parametrize("calibration", ["mean", "cached_sum"])
def test_ca2fl_trains_and_goes_on_where_it_was(calibration: str, terminal: Terminal) -> None:
    arguments = (f"--model.calibration={calibration}", "--model.max_staleness=1")
    whole = trained(terminal, "ca2fl", *arguments, folder="whole")
    buffered = trained(terminal, "fedbuff", "--model.staleness=Constant", "--model.max_staleness=1")
    alike = [one == other for one, other in zip(series(whole, "val/loss"), series(buffered, "val/loss"), strict=True)]
    assert alike == [calibration == "mean", False, False, False]
    trained(terminal, "ca2fl", *arguments, "--trainer.max_epochs=2")
    assert terminal.types("fit", "--resume=runs/ca2fl/version_0", "--trainer.max_epochs=4")[0] == 0
    assert records(terminal, "ca2fl") == whole
