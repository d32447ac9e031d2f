"""Ctrl-C ends a run with one line and code 130, and leaves a folder from which it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from lightning_sfl.checkpoint import newest_good, verify
from tests.cli.terminal import SFL, SMALL, Terminal

ROOT = Path(__file__).resolve().parents[2]


def test_ctrl_c_in_the_middle_of_a_run(terminal: Terminal) -> None:
    long = ["--trainer.max_epochs=10000", "--model.local_epochs=3"]
    command = [sys.executable, str(ROOT / "train.py"), "fit", SFL, *SMALL, *long]
    with subprocess.Popen(
        command, cwd=terminal.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        log = terminal.folder / "runs" / "sfl" / "version_0" / "rounds.jsonl"
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, err
    rounds = [json.loads(line)["round"] for line in log.read_text().splitlines()]
    assert rounds == list(range(len(rounds)))
    newest = newest_good(log.parent / "checkpoints")
    assert newest is not None
    assert verify(newest) is None
    code, _, err = terminal.types("fit", "--resume", str(log.parent), f"--trainer.max_epochs={len(rounds) + 2}")
    assert (code, err) == (0, "")
    assert [json.loads(line)["round"] for line in log.read_text().splitlines()] == list(range(len(rounds) + 2))
