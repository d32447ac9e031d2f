"""`train.py sweep`: trains every combination of a grid with every seed, each run a process of its own.

Finished runs are left alone and stopped ones go on where they were, so that the same command after a kill, or with a
longer list, does what is missing. No torch is loaded here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.records.folders import has_all_rounds, newest_run
from lightning_sfl.sweep_plan import ROUNDS, Point
from lightning_sfl.sweep_screen import Screen

if sys.platform != "win32":
    import fcntl

GRACE_S = 10.0
POLL_S = 0.1


@dataclass(eq=False)
class Job:
    """One run and how it stands: waiting, running, elsewhere (another process trains it), done or failed."""

    point: Point
    folder: Path
    state: str = "waiting"
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    took_s: float = 0.0
    complaint: str = ""

    @property
    def run(self) -> Path | None:
        """The run's own folder, once it has one."""
        return newest_run(self.folder)

    @property
    def complete(self) -> bool:
        """Whether its log holds all its rounds."""
        return has_all_rounds(self.run, self.point.rounds)

    def command(self, program: Sequence[str]) -> list[str]:
        """From the start, or on from where an earlier process was stopped."""
        begun = self.run
        root = f"--trainer.default_root_dir={self.folder}"
        if begun is None:
            return [*program, "fit", *self.point.arguments, root]
        rounds = [] if self.point.rounds is None else [f"--{ROUNDS}={self.point.rounds}"]
        return [*program, "fit", "--resume", str(begun), *rounds, root]


def the_program() -> list[str]:
    """How a run is started: by train.py of a checkout, or by the installed package."""
    script = Path(__file__).resolve().parent.parent / "train.py"
    return [sys.executable, str(script)] if script.is_file() else [sys.executable, "-m", "lightning_sfl.entry"]


def jobs_of(points: Sequence[Point], out: Path) -> list[Job]:
    """A job per run; ConfigError where a folder holds a run of other settings."""
    require(not out.exists() or out.is_dir(), "out", str(out), "a folder")
    jobs = [Job(point, out / point.name) for point in points]
    for job in jobs:
        note = job.folder / "point.json"
        if note.is_file() and json.loads(note.read_text()).get("digest") != job.point.digest:
            raise ConfigError(
                f"{job.folder} holds a run of other settings: name another folder with --out, or remove it"
            )
        if job.complete:
            job.state = "done"
    return jobs


def train(jobs: Sequence[Job], at_once: int, screen: Screen, program: Sequence[str]) -> None:
    """Carry out what is not done, `at_once` at a time; on an interrupt the children are stopped first."""
    waiting = [job for job in jobs if job.state == "waiting"]
    running: list[Job] = []
    try:
        while waiting or running:
            for job in list(waiting):
                if len(running) < at_once and start(job, program):
                    waiting.remove(job)
                    if job.state == "running":
                        running.append(job)
                    else:
                        screen.ended(job)
            for job in [job for job in running if collect(job)]:
                running.remove(job)
                screen.ended(job)
            screen.redraw()
            time.sleep(POLL_S)
    finally:
        stop(running)
        screen.close()


def start(job: Job, program: Sequence[str]) -> bool:
    """Start a run unless another process is at it, or has done it meanwhile; False for not yet."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "lock").open("ab") as lock:
        if not held(lock):
            job.state = "elsewhere"
            return False
        if job.complete:
            job.state = "done"
            return True
        note = {"digest": job.point.digest, "arguments": list(job.point.arguments)}
        (job.folder / "point.json").write_text(json.dumps(note, indent=1) + "\n")
        with (job.folder / "stdout.txt").open("wb") as out, (job.folder / "stderr.txt").open("wb") as errors:
            job.process = subprocess.Popen(  # noqa: S603 - our own program, and a list of arguments
                job.command(program),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                start_new_session=True,
                # the child keeps the lock while it lives, even if this process is killed
                pass_fds=() if sys.platform == "win32" else (lock.fileno(),),
            )
    job.state, job.began = "running", time.monotonic()
    return True


def held(lock: BinaryIO) -> bool:
    """Whether this process got the lock."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def collect(job: Job) -> bool:
    """Whether a run has ended; then its state says how."""
    if job.process is None or job.process.poll() is None:
        return False
    job.took_s = time.monotonic() - job.began
    job.state = "done" if job.process.returncode == 0 and job.complete else "failed"
    if job.state == "failed":
        lines = (job.folder / "stderr.txt").read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        code = job.process.returncode
        job.complaint = said[-1] if said else (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
    return True


def stop(running: Sequence[Job]) -> None:
    """End the children: asked first, killed after a while. Their records and checkpoints stand any kill."""
    alive = [job.process for job in running if job.process is not None and job.process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make a polite kill, or a lost terminal, look like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        with suppress(AttributeError, ValueError):  # no such signal here, or not the main thread
            number = getattr(signal, name)
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
