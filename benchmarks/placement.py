"""Two processes against one on the same rounds, and what they say to each other.

Run as a module it is one of the processes: `python -m benchmarks.placement METHOD MODE PROCESSES CLIENTS ROWS ROUNDS`.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lanes import Lap, race, ratio
from benchmarks.report import Row
from benchmarks.workloads import Workload, images, run_ours
from lightning_sfl import methods
from lightning_sfl.backbones import LeNet5
from lightning_sfl.placement import Placement, SplitStrategy

ROOT = Path(__file__).resolve().parents[1]
CASES = (
    ("FedAvg", "gathered"),
    ("FedAvg", "sharded"),
    ("SFL", "gathered"),
    ("SFL", "roles"),
    ("USFL", "gathered"),
    ("USFL", "roles"),
    ("USFL", "sharded"),
)
PROCESSES = 2
LEFT_BY_LAUNCHERS = ("MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_", "LT_")


def measure(clients: int, rows_per_client: int, rounds: int, repeats: int) -> list[Row]:
    """Speed of two processes over that of one, run in turn; the details hold messages and bytes of a round."""
    rows = []
    for method, mode in CASES:
        one: list[Lap] = []
        two: list[Lap] = []
        for _ in range(repeats):
            for count, laps in ((1, one), (PROCESSES, two)):
                told = _apart(method, mode, count, clients, rows_per_client, rounds)
                laps += [Lap(wall, cpu) for wall, cpu in told["laps"][1:]]
        kept = ("messages", "bytes", "steps")
        details = {f"{name}_per_round": told[name] for name in kept}
        details |= {f"round_s_{n}": statistics.median(lap.wall_s for lap in laps) for n, laps in ((1, one), (2, two))}
        rows.append(Row(f"W2 {method}, {mode}: speed, 2 processes / 1", ratio(one, two), "x", "", details))
        said = f"{told['messages']:.0f} messages, {told['bytes'] / 1e6:.2f} MB in {told['steps']:.0f} local steps"
        print(f"{method} {mode}: {said} a round", flush=True)
    return rows


def _apart(*case: str | int) -> dict[str, Any]:
    """What the first process of a run of its own tells."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_BY_LAUNCHERS)}
    command = [sys.executable, "-m", "benchmarks.placement", *map(str, case)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main(arguments: Sequence[str]) -> None:
    """Train; the first process prints its laps, and the messages, bytes and local steps of all processes in a round."""
    method, mode, *numbers = arguments
    processes, clients, rows, rounds = map(int, numbers)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options = {"batch_size": 50, "local_epochs": 1}
    work = Workload("W2", getattr(methods, method), LeNet5, images(clients, rows), rounds, "pool2", options)
    strategy = SplitStrategy(Placement(mode))  # type: ignore[arg-type]
    several = {"strategy": strategy, "devices": processes} if processes > 1 else {}
    laps = race({"only": lambda lane: run_ours(work, lane, **several)})["only"]
    told: dict[str, Any] = {"laps": [(lap.wall_s, lap.cpu_s) for lap in laps]}
    post = strategy.post
    if post is not None:
        sent = torch.stack(post.gather(torch.tensor([post.sent_messages, post.sent_bytes]))).sum(dim=0) / rounds
        told |= {"messages": float(sent[0]), "bytes": float(sent[1]), "steps": post.step}
        torch.distributed.destroy_process_group()
    if post is None or post.rank == 0:
        print(json.dumps({"messages": 0, "bytes": 0, "steps": 0} | told))


if __name__ == "__main__":
    main(sys.argv[1:])
