"""Seconds from the command to the end of the first round, against importing Lightning and torch alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.lanes import Lap, Ratio
from benchmarks.report import Row

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ["-c", "import lightning, torch"]
FIT = [
    "train.py", "fit", "--trainer.max_epochs=1", "--data.num_clients=4", "--model=SFL", "--model.backbone=DigitsCNN",
    "--model.cut_layer=pool", "--model.participants=2", "--model.local_steps=1",
]  # fmt: skip


def measure(repeats: int) -> list[Row]:
    """Whole runs and bare imports in turn; the figure is the difference of neighbours, in seconds."""
    with TemporaryDirectory() as folder:
        fit = [*FIT, f"--trainer.default_root_dir={folder}"]
        for command in (IMPORTS, fit):
            _timed(command)  # the first fills the disk cache and writes byte code
        pairs = [(_timed(fit), _timed(IMPORTS)) for _ in range(repeats)]
    above = [run.wall_s - bare.wall_s for run, bare in pairs]
    cpu = statistics.median(run.cpu_s - bare.cpu_s for run, bare in pairs)
    found = Ratio(statistics.median(above), min(above), max(above), cpu, repeats)
    details = {
        "run_s": statistics.median(run.wall_s for run, _ in pairs),
        "imports_s": statistics.median(bare.wall_s for _, bare in pairs),
    }
    return [Row("command to end of first round, above the imports", found, "s", "<= 1.5", details)]


def _timed(arguments: list[str]) -> Lap:
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, os.times()
    return Lap(seconds, sum(after[2:4]) - sum(before[2:4]))
