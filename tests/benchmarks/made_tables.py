"""Results of the FedAvg tables, written by hand."""

from __future__ import annotations

from benchmarks.fedavg_tables import paper
from benchmarks.fedavg_tables.cells import Cell, Run
from benchmarks.fedavg_tables.store import Store
from benchmarks.fedavg_tables.training import Outcome
from lightning_sfl.records.curves import Point

CELLS = {cell.name: cell for table in paper.TABLES.values() for cell in table.cells}
IID_CELL = CELLS["2nn-iid-C0.1-B10"]


def curve_to(rounds: float, target: float = 0.97) -> list[Point]:
    """Straight from 0.5 at round 1 to the target at `rounds`, then one round more."""
    slope = (target - 0.5) / (rounds - 1)
    return [(float(x), 0.5 + slope * (x - 1)) for x in range(1, int(rounds) + 2)]


def put(store: Store, cell: Cell, rate: float, seed: int, rounds: float | None, end: str = "reached") -> None:
    """A finished run on file."""
    store.prepare()
    curve = [(1.0, 0.5), (30.0, 0.9)] if rounds is None else curve_to(rounds, cell.target)
    store.write(Run(cell, rate, seed), Outcome(end, curve, int(curve[-1][0]), 10.0, 20.0), "abcd1234")
