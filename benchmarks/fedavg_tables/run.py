"""Trains the tables of the FedAvg paper cell by cell, as far as time allows, and goes on where it was stopped.

    python -m benchmarks.fedavg_tables.run table1 --data data --plan
    python -m benchmarks.fedavg_tables.run table1 --data data --minutes 60 --cells 2nn-iid-C0.1-B10,2nn-iid-C0.0-B10
    python -m benchmarks.fedavg_tables.run init --data data
    python -m benchmarks.fedavg_tables.run report

`times` measures the time of a round of each kind, by which --plan estimates; `init` averages two networks that began
alike and two that did not; `plain` trains cells again in a loop of plain PyTorch; `report` writes the page
docs/fedavg_tables.md, which says how rates and rounds are found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.fedavg_tables.cells import GRID, Cell, Run
from benchmarks.fedavg_tables.corpora import data_for
from benchmarks.fedavg_tables.initialisation import demonstrate
from benchmarks.fedavg_tables.paper import TABLES
from benchmarks.fedavg_tables.plain_loop import run_plain
from benchmarks.fedavg_tables.planning import at_rates, in_order, minutes_left, queue, search_of
from benchmarks.fedavg_tables.report import write_report
from benchmarks.fedavg_tables.store import Store, key_of
from benchmarks.fedavg_tables.timing import round_seconds
from benchmarks.fedavg_tables.training import Outcome, train
from lightning_sfl.core.errors import nearest, require
from lightning_sfl.plain_parser import PlainParser, plain_errors

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "fedavg_tables.md"
OTHERS = ("times", "init", "plain", "report")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to do, and with what."""
    parser = PlainParser("", __doc__ or "")
    parser.prog = "python -m benchmarks.fedavg_tables.run"
    parser.add_argument("what", choices=(*TABLES, "all", *OTHERS), help="a table, all of them, or one of the others")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder with mnist/, cifar10/, shakespeare/ (%(default)s)"
    )
    parser.add_argument("--cache", help="folder for the decoded images (~/.cache/lightning_sfl)")
    parser.add_argument("--cells", help="names, in the order in which they are to be trained; --plan lists them")
    parser.add_argument(
        "--seeds", default="0,1,2", help="the first is the one on which rates are searched (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many, to go on another time")
    parser.add_argument("--tries", type=int, default=len(GRID), help="learning rates of a cell to try at most, for now")
    parser.add_argument("--rates", help="learning rates to train to the end, as 0.1,0.215, in place of the search")
    parser.add_argument("--plan", action="store_true", help="train nothing, say what is missing and how long it takes")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results (the committed ones)")
    parser.add_argument("--page", type=Path, default=PAGE, help="report: the file to write (docs/fedavg_tables.md)")
    return parser.parse_args(arguments)


def seeds_of(text: str) -> list[int]:
    """Seeds as listed."""
    plain = all(word.isdecimal() for word in text.split(","))
    require(plain and len(set(text.split(","))) == len(text.split(",")), "seeds", text, "distinct integers, as 0,1,2")
    return [int(word) for word in text.split(",")]


def rates_of(text: str) -> list[float]:
    """Rates of the grid as listed."""
    known = {f"{rate:g}": rate for rate in GRID}
    for word in text.split(","):
        require(word in known, "rates", word, f"one of {', '.join(known)}")
    return [known[word] for word in text.split(",")]


def cells_of(what: str, names: str | None, store: Store) -> list[Cell]:
    """Cells of a table, or of all, in the order in which they are trained."""
    tables = TABLES.values() if what in ("all", *OTHERS) else [TABLES[what]]
    known = {cell.name: cell for table in tables for cell in table.cells}
    if names is None:
        return in_order(list(known.values()), store)
    for name in names.split(","):
        require(name in known, "cells", name, f"{nearest(name, known)}known are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def train_all(store: Store, cells: Sequence[Cell], seeds: Sequence[int], given: argparse.Namespace) -> bool:
    """Train what is missing until the minutes are over; whether all is there."""
    deadline = time.monotonic() + 60 * given.minutes
    searched = queue(store, cells, seeds, given.tries)
    chosen = searched if given.rates is None else at_rates(store, cells, seeds, given.rates)
    for run, limits in chosen:
        if time.monotonic() >= deadline:
            return False
        data = data_for(run.cell, run.seed, given.data, given.cache)
        outcome = train(run, data, replace(limits, deadline=deadline), store.checkpoint(run), shown(run))
        if outcome.end == "unfinished":
            return False
        store.write(run, outcome, data.population.fingerprint)
        print(f"{run.name}: {outcome.end} {told(run, outcome)}", flush=True)
    return True


def told(run: Run, outcome: Outcome) -> str:
    """A line on a run."""
    best = max((value for _, value in outcome.curve), default=0.0)
    seconds = outcome.cpu_s / max(1, outcome.rounds)
    return f"round {outcome.rounds}, best {best:.4f} of {run.cell.target:.2f}, {seconds:.2f} s of processor a round"


def shown(run: Run) -> Callable[[Outcome], None]:
    """Progress on one line of a terminal; on anything else a line now and then."""
    terminal, last = sys.stderr.isatty(), [0.0]

    def show(outcome: Outcome) -> None:
        if terminal or time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            print(f"{run.name}: {told(run, outcome)}", end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    return show


def show_plan(store: Store, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Every cell with what is known of it and the minutes it still takes."""
    total, unknown = 0.0, 0
    print(f"{'cell':28}{'rates tried':>12}{'best rate':>10}{'rounds':>8}{'s/round':>9}{'minutes left':>14}{'sum':>9}")
    for cell in cells:
        search, minutes = search_of(store, cell, seeds[0]), minutes_left(store, cell, seeds)
        rounds = None if search.best is None else search.results[search.best].rounds_to(cell.target)
        total, unknown = total + (minutes or 0.0), unknown + (minutes is None)
        columns = ["?" if minutes is None else f"{minutes:.1f}", "" if minutes is None else f"{total:.0f}"]
        found = ["" if search.best is None else f"{search.best:g}", "" if rounds is None else f"{rounds:.1f}"]
        seconds = store.times().get(key_of(cell))
        times = "?" if seconds is None else f"{seconds:.2f}"
        print(
            f"{cell.name:28}{len(search.results):>12}{found[0]:>10}{found[1]:>8}{times:>9}{columns[0]:>14}{columns[1]:>9}"
        )
    print(f"processor minutes on one core, seeds {', '.join(map(str, seeds))}; ? times of {unknown} not measured yet")


def measure_times(store: Store, cells: Sequence[Cell], given: argparse.Namespace) -> None:
    """Measure what --plan estimates by; times on file stay."""
    for cell in cells:
        if key_of(cell) not in store.times():
            store.add_time(cell, round_seconds(cell, data_for(cell, 0, given.data, given.cache)))
            print(f"{key_of(cell)}: {store.times()[key_of(cell)]} s of processor a round", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0 when all that was asked for is there, 3 when time ran out, 2 for a setting that cannot work."""
    given = options(arguments)
    torch.set_num_threads(1)
    with plain_errors():
        require(given.minutes > 0, "minutes", given.minutes, "a number > 0")
        require(given.tries >= 1, "tries", given.tries, "an integer >= 1")
        store, seeds = Store(given.out), seeds_of(given.seeds)
        cells = cells_of(given.what, given.cells, store)
        if given.rates is not None:
            given.rates = rates_of(given.rates)
        if given.plan:
            show_plan(store, cells, seeds)
            return
        if given.what == "report":
            print(f"wrote {write_report(store, seeds, given.page)}")
            return
        store.prepare()
        if given.what == "times":
            measure_times(store, cells, given)
        elif given.what == "init":
            demonstrate(store, seeds, given.data, given.cache)
        elif given.what == "plain":
            run_plain(store, seeds, given.data, given.cache)
        elif not train_all(store, cells, seeds, given):
            print("time is over; the same command goes on", flush=True)
            sys.exit(3)


if __name__ == "__main__":
    main()
