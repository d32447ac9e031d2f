"""The round log survives a kill at any byte and gives the same bytes when the run goes on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sfl.core.errors import DataError
from lightning_sfl.records.report import RoundReport
from lightning_sfl.records.round_log import RoundLog, read_rounds, resume


def record(round: int) -> dict:
    report = RoundReport(round)
    report.scalar("align/norm_mean", 0.1 + round / 3)
    report.client(10, "steps", 4)
    report.client(2, "finished", True)
    return report.record("sfl")


def written(path: Path, rounds: int) -> bytes:
    log = RoundLog(path)
    for round in range(rounds):
        log.append(record(round))
    return path.read_bytes()


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    content = written(tmp_path / "deep" / "rounds.jsonl", 3)
    assert content.count(b"\n") == 3
    assert read_rounds(tmp_path / "deep" / "rounds.jsonl") == [record(round) for round in range(3)]


def test_a_cut_at_every_byte_of_the_last_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    whole = written(path, 4)
    lines = whole.splitlines(keepends=True)
    for size in range(len(lines[0] + lines[1]), len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = sum(1 for n in range(4) if size >= len(b"".join(lines[: n + 1])) - 1)
        assert [r["round"] for r in read_rounds(path)] == list(range(complete))
        log, kept = resume(path, complete)
        assert [r["round"] for r in kept] == list(range(complete))
        for round in range(complete, 4):
            log.append(record(round))
        assert path.read_bytes() == whole
        assert [p.name for p in tmp_path.iterdir()] == ["rounds.jsonl"]


@pytest.mark.parametrize("round", [0, 2, 9])
def test_lines_of_rounds_to_be_repeated_are_dropped(tmp_path: Path, round: int) -> None:
    path = tmp_path / "rounds.jsonl"
    written(path, 4)
    _, kept = resume(path, round)
    assert kept == read_rounds(path) == [record(r) for r in range(min(round, 4))]


def test_a_new_run_has_nothing_to_resume(tmp_path: Path) -> None:
    _, kept = resume(tmp_path / "none.jsonl", 0)
    assert kept == []
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("damage", [b"{]", b"\xff\xfe", b"[1]", b'{"schema":1}', b""])
def test_damage_before_the_end_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rounds.jsonl"
    lines = written(path, 3).splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match="line 2"):
        read_rounds(path)


def test_what_is_not_finite_is_dropped_and_counted() -> None:
    report = RoundReport(7)
    for tag, value in {
        "align/a": math.nan,
        "align/b": math.inf,
        "align/c": 1.5,
        "drift/d": -math.inf,
        "top": 2,
    }.items():
        report.scalar(tag, value)
    report.client("3", "norm", math.nan)
    report.vector("v", [1.0, math.nan])
    report.vector("empty", [math.nan])
    assert report.scalars == {"align/c": 1.5, "align/n_skipped": 2, "drift/n_skipped": 1, "top": 2}
    assert report.vectors == {"v": [1.0]}
    assert report.record("sfl")["clients"] == {"3": {}}
    with pytest.raises(ValueError, match="Out of range"):
        RoundLog("never").append({"round": 0, "x": math.nan})


def test_the_form_of_a_record() -> None:
    report = RoundReport(0)
    for key in ("10", "2.1", "2"):
        report.client(key, "B", 1)
    report.scalar("b", 1)
    report.scalar("a", 0.1)
    line = report.record("usfl")
    assert list(line) == ["round", "schema", "method", "weights_scheme", "scalars", "clients"]
    assert list(line["clients"]) == ["2", "2.1", "10"]
    assert list(line["scalars"]) == ["a", "b"]
    assert json.loads(json.dumps(line)) == line


def test_records_need_no_torch() -> None:
    code = "import sys, lightning_sfl.records.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
