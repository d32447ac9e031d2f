"""Sweeps of a stand-in for training: what is skipped, continued, reported, stopped and shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_sfl import sweep_command
from lightning_sfl.records.folders import has_all_rounds, last_record, newest_run

ROOT = Path(__file__).resolve().parents[2]
TRAINEE = [sys.executable, str(Path(__file__).with_name("trainee.py"))]
RUN = f"import lightning_sfl.sweep_command as c, sys; c.the_program = lambda: {TRAINEE!r}; c.main(sys.argv[1:])"


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run the command on the stand-in in this process; gives its exit code."""
    monkeypatch.setattr(sweep_command, "the_program", lambda: TRAINEE)

    def run(*arguments: str) -> int:
        base = str(ROOT / "configs/methods/sfl.yaml")
        try:
            sweep_command.main(["--base", base, "--out", str(tmp_path / "out"), *arguments])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def starts(folder: Path) -> list[str]:
    """One line per process that trained in the folder."""
    return next(folder.rglob("starts.txt")).read_text().splitlines()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_all_runs_are_trained_once(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--grid", "model=SFL,FedAvg", "--seeds", "0,1", "--rounds", "3")
    assert sweep(*grid) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "4 runs"
    assert sorted(line.split()[1] for line in said[1:5]) == ["1/4", "2/4", "3/4", "4/4"]
    assert all("round 3/3  val/acc 0.5000" in line for line in said[1:5])
    assert "\x1b" not in "".join(said)
    folders = sorted(path for path in (tmp_path / "out").iterdir())
    assert [path.name for path in folders] == ["FedAvg-seed0", "FedAvg-seed1", "SFL-seed0", "SFL-seed1"]
    assert sweep(*grid) == 0
    assert "4 runs, 4 finished already" in capsys.readouterr().out
    assert [len(starts(folder)) for folder in folders] == [1, 1, 1, 1]


def test_more_seeds_and_more_rounds_add_to_a_sweep(sweep: Callable[..., int], tmp_path: Path) -> None:
    assert sweep("--rounds", "2") == 0
    assert sweep("--rounds", "2", "--seeds", "0,1") == 0
    assert sweep("--rounds", "5", "--seeds", "0,1") == 0
    assert len(starts(tmp_path / "out/seed0")) == 2
    assert "--resume" in starts(tmp_path / "out/seed0")[1]
    assert last_record(newest_run(tmp_path / "out/seed1") or Path())["round"] == 4


def test_other_settings_in_the_same_folder_are_refused(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--rounds", "2") == 0
    assert sweep("--rounds", "2", "--set", "model.batch_size=5") == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    assert len(starts(tmp_path / "out/seed0")) == 1


def test_a_failed_run_is_reported_and_the_others_carried_on(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--grid", "model.batch_size=13,7", "--rounds", "2", "--jobs", "1") == 1
    shown = capsys.readouterr()
    assert "failed   1/2  batch_size=13-seed0  error: thirteen is too many" in shown.out
    assert "done     2/2  batch_size=7-seed0" in shown.out
    assert shown.err.startswith("error: 1 of 2 runs failed")
    assert shown.err.count("\n") == 1


def test_so_many_at_a_time(sweep: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEP_S", "0.3")
    began = time.monotonic()
    assert sweep("--seeds", "0,1,2,3", "--rounds", "2", "--jobs", "4") == 0
    assert time.monotonic() - began < 4 * 0.6


def test_a_dry_run_shows_commands_and_does_nothing(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--rounds", "2", "--dry_run") == 0
    assert "python train.py fit --config" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def begin(out: Path, seeds: str, sleep_s: float = 0.1) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    base = str(ROOT / "configs/methods/sfl.yaml")
    words = ["--base", base, "--out", str(out), "--seeds", seeds, "--rounds", "10", "--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd=ROOT,
        env={**os.environ, "SLEEP_S": str(sleep_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_children_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    first = begin(out, "0,1,2")
    wait_for(lambda: len(list(out.rglob("rounds.jsonl"))) == 2, "two runs under way")
    first.send_signal(number)
    said = first.communicate(timeout=20)
    assert first.returncode == 130
    assert said[1] == "error: interrupted with 0 of 3 runs done; the same command goes on\n"
    pids = [int(line.split()[0]) for path in out.rglob("starts.txt") for line in path.read_text().splitlines()]
    assert len(pids) == 2
    assert not any(map(alive, pids))
    second = begin(out, "0,1,2", sleep_s=0)
    assert second.communicate(timeout=20)[1] == ""
    assert second.returncode == 0
    assert [len(starts(out / f"seed{seed}")) for seed in range(3)] == [2, 2, 1]
    assert all(has_all_rounds(newest_run(out / f"seed{seed}"), 10) for seed in range(3))


def test_after_a_kill_orphans_are_waited_for_and_never_doubled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = begin(out, "0,1,2")
    wait_for(lambda: len(list(out.rglob("rounds.jsonl"))) == 2, "two runs under way")
    first.kill()
    first.communicate()
    second = begin(out, "0,1,2", sleep_s=0)
    assert second.communicate(timeout=20)[1] == ""
    assert second.returncode == 0
    assert [len(starts(out / f"seed{seed}")) for seed in range(3)] == [1, 1, 1]
    lines = [len((newest_run(out / f"seed{seed}") / "rounds.jsonl").read_text().splitlines()) for seed in range(3)]
    assert lines == [10, 10, 10]


def test_two_sweeps_share_the_work(tmp_path: Path) -> None:
    both = [begin(tmp_path / "out", "0,1,2,3", sleep_s=0.05) for _ in range(2)]
    assert [sweep.communicate(timeout=30)[1] for sweep in both] == ["", ""]
    assert [len(starts(tmp_path / f"out/seed{seed}")) for seed in range(4)] == [1, 1, 1, 1]


def test_a_terminal_sees_the_runs_under_way(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    base = str(ROOT / "configs/methods/sfl.yaml")
    words = ["--base", base, "--out", str(tmp_path / "out"), "--rounds", "10", "--seeds", "0,1", "--jobs", "1"]
    environment = {**os.environ, "SLEEP_S": "0.1", "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    shown = b""
    process = subprocess.Popen([sys.executable, "-c", RUN, *words], cwd=ROOT, env=environment, stdout=theirs)
    os.close(theirs)
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait(timeout=20) == 0
    text = shown.decode()
    assert "running" in text
    assert "1 waiting" in text
    assert "\x1b[2A\x1b[J" in text
    assert "done     2/2  seed1  round 10/10" in text
