"""What goes wrong in one process ends all of them, with one sentence and a code other than 0; checkpoints stay good."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lightning_sfl.checkpoint import newest_good, verify
from tests.placement.processes import LIMIT_S, environment
from tests.placement.test_command_line import fit, launched

pytestmark = pytest.mark.slow
TIMEOUT_S = 5
SOON_S = 60  # the time-out, the grace of the end, and a busy machine

BROKEN_IN_ONE = '''
import os
from collections import OrderedDict
from torch import nn

class Wrong(nn.Module):
    """Gives no number in one process, after a while."""
    calls = 0
    def forward(self, x):
        self.calls += self.training
        return x * float("nan") if self.calls > 40 and os.environ.get("LOCAL_RANK") == "1" else x

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(OrderedDict(first=nn.Flatten(), second=nn.Linear(64, 8), wrong=Wrong(), head=nn.Linear(8, 10)))
'''


@contextmanager
def running(folder: Path, *more: str, config: str = "sfl", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A run in two processes; whatever is left of it is killed."""
    command = fit(config, folder / "runs", "--trainer.max_epochs=5000", f"--placement.timeout_s={TIMEOUT_S}", *more)
    process = subprocess.Popen(
        launched("trainer", 2, command), env=environment() | variables, cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def after_rounds(process: subprocess.Popen[str], folder: Path, count: int = 4) -> int:
    """Waits for so many rounds; the other process."""
    deadline = time.monotonic() + LIMIT_S
    while not any(log.read_text().count("\n") >= count for log in folder.glob("runs/*/version_0/rounds.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def newest_loads(folder: Path) -> None:
    (checkpoints,) = folder.glob("runs/*/version_0/checkpoints")
    newest = newest_good(checkpoints)
    assert newest is not None
    assert verify(newest) is None


@pytest.mark.parametrize(
    ("config", "victim", "number", "sentence"),
    [
        ("sfl", 1, signal.SIGKILL, "rank 1 is gone"),
        ("sfl", 1, signal.SIGSTOP, f"rank 1 did not answer within {TIMEOUT_S} s"),
        ("sfl", 0, signal.SIGKILL, "rank 0 is gone"),
        ("sfl", 0, signal.SIGSTOP, f"rank 0 did not answer within {TIMEOUT_S} s"),
        ("usfl", 1, signal.SIGKILL, "rank 1 is gone"),  # in sums
        ("usfl", 1, signal.SIGSTOP, f"rank 1 did not answer within {TIMEOUT_S} s"),
    ],
)
def test_a_killed_or_hanging_process(
    config: str, victim: int, number: signal.Signals, sentence: str, tmp_path: Path
) -> None:
    with running(tmp_path, config=config) as process:
        child = after_rounds(process, tmp_path)
        os.kill(child if victim else process.pid, number)
        _, err = process.communicate(timeout=SOON_S)
        assert process.returncode != 0
        assert gone(child)
    assert err.count("error: ") == 1, err
    assert sentence in err
    assert ", round " in err
    assert "awaited: " in err
    assert "Traceback" not in err
    newest_loads(tmp_path)


def test_a_number_that_is_not_finite_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_IN_ONE)
    net = ["--model.backbone=broken.Net", "--model.cut_layer=second"]
    with running(tmp_path, *net, config="fedavg") as process:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 1
    assert err.count("error: ") == 1, err
    assert "the loss is not finite in fedavg, round " in err
    assert "Traceback" not in err


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running(tmp_path, MASTER_PORT=port, MASTER_ADDR="127.0.0.1") as process:
            _, err = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 1
    assert err.count("error: ") == 1, err
    assert f"could not meet at 127.0.0.1:{port}" in err
    assert "Traceback" not in err


def test_ctrl_c(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        child = after_rounds(process, tmp_path)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=SOON_S)
        assert process.returncode == 130, err
        assert gone(child)
    assert err.count("error: interrupted") == 1, err
    assert "Traceback" not in err
    newest_loads(tmp_path)


def test_good_runs_end_well(tmp_path: Path) -> None:
    for _ in range(3):
        command = launched("trainer", 2, fit("sfl", tmp_path))
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, done.stderr) == (0, "")
