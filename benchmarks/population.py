"""What a large population costs: 10,000 clients against 100, as many taking part with as many rows in both."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lanes import Lane, Ratio, race, ratio
from benchmarks.report import Row
from benchmarks.workloads import Workload, run_ours
from lightning_sfl.backbones import DigitsCNN
from lightning_sfl.data import IID, FederatedData, Synthetic
from lightning_sfl.methods import SFL

ROOT = Path(__file__).resolve().parents[1]
ROWS_PER_CLIENT = 10
BATCHES: dict[str, Any] = {"batch_size": 10, "local_epochs": 5}


def workload(clients: int, rounds: int) -> Workload:
    """SFL on synthetic images, every client with the same few rows, 10 clients a round."""
    source = Synthetic(rows=clients * ROWS_PER_CLIENT, test_rows=10)
    data = FederatedData(source, IID(), num_clients=clients, val_fraction=0.0, eval_set="test")
    return Workload(f"{clients} clients", SFL, DigitsCNN, data, rounds, "pool", BATCHES)


def measure(few: int, many: int, rounds: int, repeats: int) -> list[Row]:
    """Round time side by side, and peak memory of a process for each."""
    works = {clients: workload(clients, rounds) for clients in (few, many)}
    for work in works.values():
        work.data.setup()
    laps = race({work.name: partial(run_ours, work) for work in works.values()})
    kept = slice(2, None)
    found = ratio(laps[works[many].name][kept], laps[works[few].name][kept])
    details = {name: statistics.median(lap.wall_s for lap in times[kept]) for name, times in laps.items()}
    return [Row(f"round time, {many:,} clients / {few:,}", found, "x", "<= 1.1", details), *_memory(few, many, repeats)]


def _memory(few: int, many: int, repeats: int) -> list[Row]:
    pairs = [(peak_mb_apart(many), peak_mb_apart(few)) for _ in range(repeats)]
    data_mb = {clients: clients * ROWS_PER_CLIENT * (64 * 4 + 8) / 2**20 for clients in (few, many)}
    details = {"peak_mb": {many: pairs[0][0], few: pairs[0][1]}, "data_mb": data_mb}
    whole = [over / under for over, under in pairs]
    less = [(over - data_mb[many]) / (under - data_mb[few]) for over, under in pairs]
    return [
        Row(f"peak memory, {many:,} clients / {few:,}", _spread(whole), "x", "<= 1.1", details),
        Row("  the same without the training data itself", _spread(less), "x", "", details),
    ]


def _spread(quotients: list[float]) -> Ratio:
    middle = statistics.median(quotients)
    return Ratio(middle, min(quotients), max(quotients), middle, len(quotients))


def peak_mb_apart(clients: int) -> float:
    """Peak memory in MiB of a process that does three rounds."""
    command = [sys.executable, "-m", "benchmarks.population", str(clients)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def peak_mb(clients: int) -> float:
    """Peak memory in MiB of this process after three rounds."""
    race({"only": lambda lane: _three_rounds(clients, lane)})
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count in what the parent had at its peak before it started this process
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _three_rounds(clients: int, lane: Lane) -> None:
    run_ours(workload(clients, 3), lane)


if __name__ == "__main__":
    print(peak_mb(int(sys.argv[1])))
