"""Two processes against one on the same rounds, and what they say to each other.

Both runs are alive at once and take turns round by round, so that whatever else the machine does disturbs them alike.
Run as a module it is one of the processes: `python -m benchmarks.placement METHOD MODE PROCESSES CLIENTS ROWS ROUNDS`;
the first of them waits for a line on its standard input before each round.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from benchmarks.lanes import Lane, Lap, ratio
from benchmarks.report import Row
from benchmarks.workloads import Workload, images, run_ours
from lightning_sfl import methods
from lightning_sfl.backbones import LeNet5
from lightning_sfl.placement import Placement, SplitStrategy
from lightning_sfl.placement.post import Post

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
AIMS = {("FedAvg", "sharded"): ">= 1.5", ("USFL", "sharded"): ">= 1.5"}
PROCESSES = 2
TURN = "my turn is over"
LEFT_BY_LAUNCHERS = ("MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_", "LT_")


def measure(clients: int, rows_per_client: int, rounds: int, repeats: int) -> list[Row]:
    """Speed of two processes over that of one, in turns; the details hold messages, bytes and waits of a round."""
    rows = []
    for method, mode in CASES:
        laps: dict[int, list[Lap]] = {1: [], PROCESSES: []}
        for _ in range(repeats):
            one, two = taken_in_turn(method, mode, clients, rows_per_client, rounds)
            for told in (one, two):
                laps[told["processes"]] += [Lap(*lap) for lap in told["laps"][1:]]
        details = {f"{name}_per_round": two[name] for name in ("messages", "bytes", "steps", "waited_s")}
        for count, each in laps.items():
            details[f"round_s_{count}"] = statistics.median(lap.wall_s for lap in each)
        aim = AIMS.get((method, mode), "")
        rows.append(Row(f"W2 {method}, {mode}: speed, 2 processes / 1", ratio(*laps.values()), "x", aim, details))
        in_step = f", {two['bytes'] / two['steps'] / 1e6:.2f} MB a step" if two["steps"] else ""
        sent = f"{two['messages']:.0f} messages, {two['bytes'] / 1e6:.2f} MB{in_step}"
        waited = f"{two['waited_s']:.2f} of {details[f'round_s_{PROCESSES}']:.2f} s waiting"
        print(f"{method} {mode}, a round: {sent}, {waited}", flush=True)
    return rows


def taken_in_turn(*case: str | int) -> list[dict[str, Any]]:
    """What the first process of each run tells; each lap of one has a lap of the other beside it."""
    runs = [_started(case, count) for count in (1, PROCESSES)]
    try:
        lines = [_line(run) for run in runs]
        while TURN in lines:
            for number, run in enumerate(runs):
                print("go", file=run.stdin, flush=True)
                lines[number] = _line(run)
        return [json.loads(line) for line in lines]
    finally:
        for run in runs:
            run.communicate("go\n" if run.poll() is None else None)


def _started(case: Sequence[str | int], count: int) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_BY_LAUNCHERS)}
    method, mode, *sizes = map(str, case)
    command = [sys.executable, "-m", "benchmarks.placement", method, mode, str(count), *sizes]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _line(run: subprocess.Popen[str]) -> str:
    """The next line; a run that ended before its time has none."""
    line = run.stdout.readline().strip() if run.stdout is not None else ""
    if not line:
        raise RuntimeError(f"{run.args!r} ended")
    return line


class Turns(Lane):
    """Laps of a run of one or several processes, none of which goes on before it is their turn."""

    def __init__(self, strategy: SplitStrategy) -> None:
        super().__init__([])
        self.strategy, self.waited_s, self.own = strategy, 0.0, torch.zeros(2, dtype=torch.int64)

    @override
    def lap(self) -> None:
        now, cpu, post = time.perf_counter(), time.process_time(), self.strategy.post
        if self._started is not None:
            self.laps.append(Lap(now - self._started[0], cpu - self._started[1]))
        if post is None or post.rank == 0:
            print(TURN, flush=True)
            sys.stdin.readline()
        if post is not None:
            if self._started is None:
                self._time(post)
            before, waited = sent_by(post), self.waited_s
            post.gather(torch.zeros(0))
            self.own, self.waited_s = self.own + sent_by(post) - before, waited
        self._started = time.perf_counter(), time.process_time()

    def _time(self, post: Post) -> None:
        """Have the post say how long it waits."""
        for name in ("_swap", "add_up", "end_sum"):
            setattr(post, name, self._timed(getattr(post, name)))

    def _timed(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.waited_s += time.perf_counter() - start
            return result

        return timed


def sent_by(post: Post) -> torch.Tensor:
    """Messages and bytes so far."""
    return torch.tensor([post.sent_messages, post.sent_bytes])


def main(arguments: Sequence[str]) -> None:
    """Train; the first process prints its laps, and the messages, bytes and local steps of all processes in a round."""
    method, mode, *numbers = arguments
    processes, clients, rows, rounds = map(int, numbers)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options = {"batch_size": 50, "local_epochs": 1}
    work = Workload("W2", getattr(methods, method), LeNet5, images(clients, rows), rounds, "pool2", options)
    strategy = SplitStrategy(Placement(mode))  # type: ignore[arg-type]
    turns = Turns(strategy)
    shared: dict[str, Any] = {"strategy": strategy, "devices": processes} if processes > 1 else {}
    run_ours(work, turns, **shared)
    told: dict[str, Any] = {"processes": processes, "messages": 0, "bytes": 0, "steps": 0, "waited_s": 0}
    post, laps = strategy.post, [(lap.wall_s, lap.cpu_s) for lap in turns.laps]
    if post is not None:
        sent = torch.stack(post.gather(sent_by(post) - turns.own)).sum(dim=0).double() / rounds
        busiest = torch.stack(post.gather(torch.tensor(laps, dtype=torch.float64))).amax(dim=0)
        laps = [(wall, cpu) for (wall, _), (_, cpu) in zip(laps, busiest.tolist(), strict=True)]
        told |= {"messages": float(sent[0]), "bytes": float(sent[1]), "steps": post.step}
        told["waited_s"] = turns.waited_s / rounds
        torch.distributed.destroy_process_group()
    if post is None or post.rank == 0:
        print(json.dumps(told | {"laps": laps}))


if __name__ == "__main__":
    main(sys.argv[1:])
