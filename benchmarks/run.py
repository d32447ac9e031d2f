"""`make bench`: the figures of README and docs, as ratios measured side by side in one run."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, this folder is no package yet

import torch

from benchmarks import comparing, placement, population, resnet, startup, throughput, watching
from benchmarks.report import Row, machine, table, write
from benchmarks.workloads import workloads

PARTS = ("throughput", "watching", "population", "placement", "startup", "comparing")
ASKED_FOR = ("resnet",)  # only by name: seconds a step on a CPU


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Sizes; the defaults take some minutes on two cores."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "parts",
        nargs="*",
        help=f"what to measure: {', '.join(PARTS)}, all of these by default; or {', '.join(ASKED_FOR)}",
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the small workloads (W1, W3)")
    parser.add_argument("--clients", type=int, default=100, help="clients of the workloads")
    parser.add_argument("--image-rounds", type=int, default=8, help="rounds of the workloads that compute (W2)")
    parser.add_argument("--image-rows", type=int, default=500, help="rows per client of W2")
    parser.add_argument(
        "--watched-rounds", type=int, default=41, help="rounds for the cost of callbacks, the first dropped"
    )
    parser.add_argument(
        "--watched-repeats", type=int, default=3, help="runs of these; each round counts as the shortest of them"
    )
    parser.add_argument("--together", action="store_true", help="all callbacks together only, none by itself")
    parser.add_argument("--many-clients", type=int, default=10_000, help="size of the large population")
    parser.add_argument("--population-rounds", type=int, default=40, help="rounds for each population")
    parser.add_argument(
        "--repeats", type=int, default=5, help="process starts for start-up time; half as many for memory"
    )
    parser.add_argument("--compared-runs", type=int, default=50, help="finished runs that are compared")
    parser.add_argument("--compared-rounds", type=int, default=100, help="rounds of each of them")
    parser.add_argument("--resnet-rounds", type=int, default=6, help="rounds of ResNet-18, the first dropped")
    parser.add_argument("--resnet-batch", type=int, default=50, help="rows of a client's batch; 10 clients, 2 batches")
    parser.add_argument("--resnet-width", type=int, default=64, help="channels of its first layer")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", help="where ResNet-18 trains")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of ResNet-18")
    parser.add_argument("--compile", action="store_true", help="compile ResNet-18, ours and the whole network")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of latest.json")
    chosen = parser.parse_args(arguments)
    unknown, known = set(chosen.parts) - {*PARTS, *ASKED_FOR}, ", ".join((*PARTS, *ASKED_FOR))
    if unknown:
        parser.error(f"parts={' '.join(sorted(unknown))} is not allowed: {known}")
    if chosen.watched_repeats < 1:
        parser.error(f"watched-repeats={chosen.watched_repeats} is not allowed: an integer >= 1")
    if chosen.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("accelerator=gpu is not allowed: cpu, since torch finds no CUDA device here")
    return chosen


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print as it comes, write."""
    chosen = options(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    works = workloads(chosen.clients, chosen.rounds, chosen.image_rows, chosen.image_rounds)
    watched = workloads(chosen.clients, chosen.watched_rounds, 1, 1)[1]
    measured: dict[str, Callable[[], list[Row]]] = {
        "throughput": lambda: throughput.measure(works),
        "watching": lambda: watching.measure(watched, not chosen.together, chosen.watched_repeats),
        "population": lambda: population.measure(
            100, chosen.many_clients, chosen.population_rounds, max(1, chosen.repeats // 2)
        ),
        "placement": lambda: placement.measure(
            20, chosen.image_rows, max(2, chosen.image_rounds // 2), max(1, chosen.repeats // 2)
        ),
        "startup": lambda: startup.measure(chosen.repeats),
        "comparing": lambda: comparing.measure(
            chosen.compared_runs, chosen.compared_rounds, max(1, chosen.repeats // 2)
        ),
        "resnet": lambda: resnet.measure(
            resnet.Setting(
                chosen.resnet_rounds,
                chosen.resnet_batch,
                chosen.resnet_width,
                chosen.accelerator,
                chosen.precision,
                chosen.compile,
            )
        ),
    }
    facts, rows = machine(), []
    for part in chosen.parts or PARTS:
        begun = time.perf_counter()
        found = measured[part]()
        print(f"{table(found)}\n({part}: {time.perf_counter() - begun:.0f} s)\n", flush=True)
        rows += found
    path = write(chosen.out, rows, facts)
    print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} thread; load {facts['load']}; wrote {path}"
    )
    return rows


if __name__ == "__main__":
    main()
