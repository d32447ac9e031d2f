"""Every exchangeable part of the loop from the command line, with a cut and without; those of privacy have a file of
their own.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from lightning_sfl.class_names import kind_of
from tests.cli.terminal import SMALL, Terminal

SETTING = [
    *SMALL, "--data.source.rows=125", "--data.num_clients=6", "--model.participants=5", "--model.local_epochs=2",
    "--trainer.max_epochs=3",
]  # fmt: skip
SCHEDULE = "schedule.json"
MERGED = {
    "aggregator": {
        "CosineWeighted": ["power=2", "reference=previous"],
        "DeviationClipping": ["factor=0.5"],
        "Krum": [],
        "Median": [],
        "NormClipping": ["factor=0.5"],
        "TrimmedMean": [],
        "Unbiased": [],
    },
    "merge_optimizer": {
        "FedAdagrad": ["lr=0.03"],
        "FedAdam": ["lr=0.03"],
        "FedYogi": ["lr=0.03"],
        "SGD": ["lr=1", "momentum=0.9"],
    },
}
CHOSEN = {
    "FedCBS": [],
    "FixedSchedule": [f"path={SCHEDULE}"],
    "LabelAware": [],
    "Oort": ["min_rows=2", "blacklist_after=0"],
    "PowerOfChoice": [],
}
WORK = {
    "Decay": ["epochs_factor=0.5"],
    "EpsilonGreedy": ["arms=[1,3]"],
    "Plateau": ["patience=1"],
    "Stages": ["epochs={1: 1, 2: 3}"],
    "UpperConfidence": ["arms=[1,3]"],
}
TRACE = "trace.json"
ATTENDANCE = {
    "availability": ["availability=0.5", "quorum=3"],
    "chances": ["availability=[0,0.5,0.5,0.9,0.9,1]", "quorum=3"],
    "trace": [f"trace={TRACE}", "quorum=3"],
    "overcommit": ["overcommit=1.6"],
    "deadline_s": ["deadline_s=0.001", "quorum=2"],
}
LATE = {"Hinge": ["slope=1", "tolerated=1"], "Polynomial": ["power=1"]}
USUAL = {"WeightedAverage", "Uniform", "Constant"}
Round = dict[str, Any]
PLAIN: dict[tuple[str, ...], list[Round]] = {}
both = pytest.mark.parametrize("method", ["sfl", "fedavg"])


def trained(terminal: Terminal, method: str, *arguments: str) -> list[Round]:
    """The records of every round."""
    code, _, err = terminal.types("fit", f"--config=configs/methods/{method}.yaml", *SETTING, *arguments)
    assert (code, err) == (0, "")
    newest = max((terminal.folder / "runs" / method).glob("version_*"))
    return [json.loads(line) for line in (newest / "rounds.jsonl").read_text().splitlines()]


def plain(terminal: Terminal, method: str, *arguments: str) -> list[Round]:
    """The same without the ingredient, trained once."""
    key = (method, *arguments)
    if key not in PLAIN:
        PLAIN[key] = trained(terminal, *key)
    return PLAIN[key]


def given(key: str, name: str, settings: list[str]) -> list[str]:
    """As one types it."""
    return [f"--model.{key}={name}", *(f"--model.{key}.{setting}" for setting in settings)]


def series(rounds: list[Round], tag: str) -> list[float]:
    return [one["scalars"][tag] for one in rounds]


def test_none_is_left_out() -> None:
    listed = {**MERGED, "selection": CHOSEN, "effort": WORK, "staleness": LATE}
    for key, names in listed.items():
        known = {name for name in kind_of(key).names() if not hasattr(torch.optim, name)}
        assert known - USUAL == set(names) - {"SGD"}, key


@both
@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in MERGED.items() for name in names])
def test_what_is_merged_is_another_network(key: str, name: str, method: str, terminal: Terminal) -> None:
    usual = series(plain(terminal, method), "train/loss")
    found = series(trained(terminal, method, *given(key, name, MERGED[key][name])), "train/loss")
    assert found[0] == usual[0]
    assert found[2] != usual[2]  # momentum has a past by then
    assert all(map(math.isfinite, found))


@both
@pytest.mark.parametrize("name", CHOSEN)
def test_who_takes_part(name: str, method: str, terminal: Terminal) -> None:
    few = "--model.participants=3"
    terminal.writes(SCHEDULE, "[[5, 4, 3], [2, 1, 0], [5, 3, 1]]")
    usual, found = plain(terminal, method, few), trained(terminal, method, few, *given("selection", name, CHOSEN[name]))
    assert all(len(one["clients"]) == 3 for one in found)
    assert [set(one["clients"]) for one in found] != [set(one["clients"]) for one in usual]
    if name == "FixedSchedule":
        assert [sorted(one["clients"]) for one in found] == [["3", "4", "5"], ["0", "1", "2"], ["1", "3", "5"]]


@both
@pytest.mark.parametrize("name", WORK)
def test_how_much_a_client_does(name: str, method: str, terminal: Terminal) -> None:
    # with all clients and no rate the loss stays but for rounding: a plateau
    still = ["--model.participants=6", "--trainer.max_epochs=5", "--model.client_optimizer.lr=0"]
    still += ["--model.server_optimizer.lr=0"] if method == "sfl" else []
    usual = plain(terminal, method, *still)
    found = trained(terminal, method, *still, *given("effort", name, WORK[name]))
    assert series(found, "count/client_steps") != series(usual, "count/client_steps")


@both
@pytest.mark.parametrize("name", ATTENDANCE)
def test_who_comes_and_is_done(name: str, method: str, terminal: Terminal) -> None:
    terminal.writes(TRACE, "[[0, 1, 2], [4, 5], [1, 3, 5]]")
    found = trained(terminal, method, *(f"--model.attendance.{setting}" for setting in ATTENDANCE[name]))
    came, finished = series(found, "attendance/came"), series(found, "attendance/finished")
    if name in ("availability", "chances", "trace"):
        short = [int(count < 3) for count in came]
        assert min(came) < 5
        assert series(found, "attendance/called_off_total") == [sum(short[: i + 1]) for i in range(3)]
        assert finished == [0 if few else count for few, count in zip(short, came, strict=True)]
        assert [len(one["clients"]) for one in found] == finished
    else:
        expected = {"overcommit": ([5, 5, 5], [6, 6, 6]), "deadline_s": ([2, 2, 2], [5, 5, 5])}
        assert (finished, came) == expected[name]
    assert name != "chances" or all("0" not in one["clients"] for one in found)
    if name == "trace":
        assert [sorted(one["clients"]) for one in found] == [["0", "1", "2"], [], ["1", "3", "5"]]


@pytest.mark.parametrize(
    ("method", "name", "first"),
    [("fedbuff", "Polynomial", 1), ("fedbuff", "Hinge", 2), ("gas", "Hinge", 2), ("fedasync", "Polynomial", 0)],
)
def test_late_updates_count_less(method: str, name: str, first: int, terminal: Terminal) -> None:
    """Two updates at a time miss 0, 1 and 2 merges; one at a time, up to 4 at once. The hinge tolerates one."""
    few = ["--model.local_epochs=1", *([] if method == "fedasync" else ["--model.model_buffer=2"])]
    usual = plain(terminal, method, *few, "--model.staleness=Constant")
    found = trained(terminal, method, *few, *given("staleness", name, LATE[name]))
    assert series(found, "staleness/max") == [[0, 1, 2], [4, 5, 4]][method == "fedasync"]
    assert series(found, "staleness/mean") == series(usual, "staleness/mean")
    losses = zip(series(found, "val/loss"), series(usual, "val/loss"), strict=True)
    assert [one != other for one, other in losses] == [index >= first for index in range(3)]
