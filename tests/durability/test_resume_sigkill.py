"""Trainings killed at random moments end, once resumed, with the weights of a training that nobody killed. Bitwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.every_method import METHODS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks its victims")


def tormented(folder: Path, rounds: int, kills: int, seed: int) -> list[dict[str, Any]]:
    names = [cls.__name__ for cls in METHODS]
    command = [sys.executable, str(ROOT / "tests" / "durability" / "driver.py"), str(folder)]
    command += [str(rounds), str(kills), str(seed), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [entry["method"] for entry in seen] == names
    return seen


def check(seen: list[dict[str, Any]], rounds: int) -> None:
    assert {entry["method"]: entry["differing"] for entry in seen} == {entry["method"]: [] for entry in seen}
    found = [done for entry in seen for done in entry["found"]]
    assert any(0 < done < rounds for done in found), f"no kill fell into the middle of a run: {found}"


def test_killed_and_resumed(tmp_path: Path) -> None:
    check(tormented(tmp_path, rounds=6, kills=2, seed=0), rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_resumed_again_and_again(seed: int, tmp_path: Path) -> None:
    check(tormented(tmp_path, rounds=12, kills=10, seed=seed), rounds=12)
