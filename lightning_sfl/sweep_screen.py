"""What a sweep shows: a line per run that ended, and on a terminal a table of those under way, redrawn."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lightning_sfl.core.errors import DataError
from lightning_sfl.records.folders import last_record, read_config

if TYPE_CHECKING:
    from lightning_sfl.sweep import Job

REDRAW_S = 0.5


class Screen:
    """Lines about `jobs`; `live` redraws those under way."""

    def __init__(self, jobs: Sequence[Job], live: bool) -> None:
        self.jobs = jobs
        self.live = live
        self.width = max((len(job.point.name) for job in jobs), default=0)
        self.over = sum(job.state == "done" for job in jobs)
        self.drawn = 0
        self.next_s = 0.0

    def begin(self) -> None:
        """How much there is to do."""
        counts = Counter(job.state for job in self.jobs)
        already = f", {counts['done']} finished already" if counts["done"] else ""
        click.echo(f"{len(self.jobs)} runs{already}")

    def ended(self, job: Job) -> None:
        """One line for a run that is done or failed."""
        self._wipe()
        self.over += 1
        says = progress(job) if job.state == "done" else job.complaint
        took = f"  {job.took_s:.0f} s" if job.took_s else ""
        click.echo(f"{job.state:<6} {self.over:>3}/{len(self.jobs)}  {job.point.name:<{self.width}}  {says}{took}")

    def redraw(self) -> None:
        """The runs under way, at most twice a second and only on a terminal."""
        if not self.live or time.monotonic() < self.next_s:
            return
        self.next_s = time.monotonic() + REDRAW_S
        columns, rows = shutil.get_terminal_size()
        under_way = [job for job in self.jobs if job.state in ("running", "elsewhere")][: max(1, rows - 2)]
        waiting = sum(job.state == "waiting" for job in self.jobs)
        lines = [f"{job.state:<9}     {job.point.name:<{self.width}}  {progress(job)}" for job in under_way]
        lines.append(f"{waiting} waiting")
        self._wipe()
        click.echo("\n".join(line[: columns - 1] for line in lines))
        self.drawn = len(lines)

    def close(self) -> None:
        """Leave only what ended."""
        self._wipe()

    def _wipe(self) -> None:
        if self.drawn:
            click.echo(f"\x1b[{self.drawn}A\x1b[J", nl=False)
        self.drawn = 0


def progress(job: Job) -> str:
    """Round and accuracy of the newest record, as far as there is one."""
    run = job.run
    if run is None:
        return "starting"
    try:
        record = last_record(run)
        total = job.point.rounds or (read_config(run).get("trainer") or {}).get("max_epochs", "?")
    except DataError:
        return "starting"
    if not record:
        return f"round 0/{total}"
    accuracy = [
        f"  {tag} {value:.4f}" for tag, value in record.get("scalars", {}).items() if tag in ("val/acc", "test/acc")
    ]
    return f"round {record['round'] + 1}/{total}{''.join(accuracy)}"
