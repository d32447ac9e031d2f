"""A sweep of real, small trainings that is killed, children and all, and goes on to the same records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc"),
]


def begin(out: Path) -> subprocess.Popen[str]:
    options = ["--base", "configs/methods/sfl.yaml", "--base", "configs/data/synthetic.yaml", "--jobs", "2"]
    words = [*options, "--grid", "model=SFL,FedAvg", "--rounds", "6", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "train.py", "sweep", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("rounds.jsonl")}


def test_a_killed_sweep_ends_with_the_same_records(tmp_path: Path) -> None:
    first = begin(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while len(logs(tmp_path / "killed")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    for pid in [first.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    half = logs(tmp_path / "killed")
    second = begin(tmp_path / "killed")
    said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    whole = begin(tmp_path / "whole")
    assert whole.communicate(timeout=120)[1] == ""
    assert logs(tmp_path / "killed") == logs(tmp_path / "whole")
    assert len(logs(tmp_path / "whole")) == 2
    assert half != logs(tmp_path / "whole")
    manifests = [sorted(p.read_bytes() for p in (tmp_path / n).rglob("run.json")) for n in ("killed", "whole")]
    assert manifests[0] == manifests[1]
