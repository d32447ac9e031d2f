"""The commands of docs/placement.md run as they stand there, in their order, in a folder that looks like a checkout."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.placement.processes import LIMIT_S, environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "placement.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    beside = Path(sys.executable).parent
    first, *words = shlex.split(command)
    program = sys.executable if first == "python" else str(beside / first)
    return subprocess.Popen(
        [program, *words], cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_its_commands_work(tmp_path: Path) -> None:
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    waiting: list[tuple[str, subprocess.Popen[str]]] = []
    for command in COMMANDS:
        waiting.append((command, start(command.removesuffix("&"), tmp_path)))
        for line, process in [] if command.endswith("&") else waiting:
            out, err = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, f"{line}\n{out}\n{err}"
        waiting = waiting if command.endswith("&") else []
    found = {str(path.parent.relative_to(tmp_path / "runs")): path for path in tmp_path.glob("runs/*/*/rounds.jsonl")}
    rounds = {run: [json.loads(line)["round"] for line in path.read_text().splitlines()] for run, path in found.items()}
    three = [f"usfl/version_{number}" for number in (1, 2)] + ["sfl/version_0", "fedavg/version_0"]
    assert rounds == {"usfl/version_0": list(range(6)), **{run: [0, 1, 2] for run in three}}


def test_it_runs_every_way_to_start() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"python", "fabric", "torchrun"}
    assert any("two_processes.yaml" in command for command in COMMANDS)
    assert sum("--num-nodes 2" in command for command in COMMANDS) == 2
