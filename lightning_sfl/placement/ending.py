"""How several processes end together when one of them cannot go on: one says why, and none stays behind.

Whoever fails first says so in the store through which the processes met; the others, who miss it a moment later, end
without a word. The process that started the others ends them, and is ended by them should it hang.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

FAILED = "lightning_sfl/failed"
STARTED_BY = "LIGHTNING_SFL_STARTED_BY"
GRACE_S = 3.0
GUARD = "import os, sys, time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), 9)"

started: list[subprocess.Popen[Any]] = []  # by this process


class Starter(_SubprocessScriptLauncher):
    """Starts the other processes of this machine and tells them who did.

    Lightning's own launcher ends this process without a word when one of them has died.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start them, and go on with `function`."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[STARTED_BY] = str(os.getpid())
            self._call_children_scripts()
            del os.environ[STARTED_BY]
            started.extend(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def kill(self, signum: Any) -> None:
        """Lightning's hook at Ctrl-C, which the others have met as well: one of them may be about to say so."""
        end(self.procs)


def is_first_to_fail() -> bool:
    """Whether this process is the one to say what went wrong: no other one of this run has said it before."""
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return _count(_store(), 1) in (1, None)  # None: the process that kept the store is gone, or hangs


def leave() -> None:
    """Make ready to exit, which is what the others notice: nobody who hangs shall stay behind.

    Who started others gives them a moment to notice, and ends those who have not. Who was started has somebody look
    after the one who started it; it cannot wait itself, since its connections close when it exits.
    """
    parent = os.environ.get(STARTED_BY)
    if parent is not None and os.getppid() == int(parent):
        guard = [sys.executable, "-c", GUARD, parent, str(3 * GRACE_S)]
        subprocess.Popen(guard, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    elif dist.is_initialized():
        store, size = _store(), dist.get_world_size()
        dist.destroy_process_group()
        _wait(lambda: (_count(store, 0) or size) >= size)
    end(started)


def end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End processes that this one has started, and wait for them."""
    if not _wait(lambda: all(process.poll() is not None for process in processes)):
        for process in processes:
            process.kill()
            process.wait()


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _count(store: Any, more: int) -> int | None:
    """How many have failed, these included; None where the store does not answer, which it would wait for forever."""
    answers: list[int] = []

    def ask() -> None:
        with suppress(RuntimeError):
            answers.append(int(store.add(FAILED, more)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GRACE_S)
    return answers[0] if answers else None


def _wait(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + GRACE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
