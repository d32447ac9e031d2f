"""What is to be trained next, and about how long it takes: a climb over learning rates for one seed, then more seeds.

The search, on the first seed of a cell: begin at the cell's rate, try the next larger and the next smaller one, go to
the better, until both neighbours of the best rate have been tried or the grid ends. A rate is abandoned as soon as it
has used as many rounds as the best one needed (it can no longer win), or when, after 20 rounds or more, its best
accuracy is below what the best rate had reached after half as many. The other seeds are trained at the rate found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.fedavg_tables.cells import GRID, Cell, Run, neighbours
from benchmarks.fedavg_tables.store import Result, Store, key_of
from benchmarks.fedavg_tables.training import Limits

# The order when no cells are named: what decides most for its minutes comes first; the rest follows by its minutes.
FIRST = (
    "2nn-iid-C0.1-B10", "2nn-noniid-C0.1-B10", "2nn-iid-C0.0-B10", "2nn-iid-C0.2-B10", "2nn-iid-C0.1-Binf",
    "2nn-noniid-C0.0-B10", "2nn-noniid-C0.2-B10", "cnn-iid-C0.1-E5-B10", "2nn-iid-C0.5-B10", "cnn-iid-C0.1-E1-B10",
    "2nn-iid-C1.0-B10", "2nn-noniid-C0.1-Binf", "cnn-noniid-C0.1-E1-B10", "2nn-noniid-C0.5-B10", "cnn-iid-fedsgd",
    "2nn-noniid-C1.0-B10", "cnn-noniid-fedsgd", "cnn-noniid-C0.1-E5-B10",
)  # fmt: skip
# how many whole trainings a search comes to: the best rate, and its neighbours up to where they are abandoned
SEARCH_COST = 2.3


@dataclass(frozen=True)
class Search:
    """The search for a cell's rate, as far as it has got; `best` is the leading rate, None before the first run."""

    cell: Cell
    results: dict[float, Result]

    @property
    def best(self) -> float | None:
        """Fewest rounds to the target; where no rate gets there, the highest accuracy; diverged runs never lead."""
        alive = {rate: result for rate, result in self.results.items() if result.end != "diverged"}
        return min(alive, key=lambda rate: self._rank(alive[rate]), default=None)

    def _rank(self, result: Result) -> tuple[float, float]:
        rounds = result.rounds_to(self.cell.target)
        return (float("inf") if rounds is None else rounds, -max((value for _, value in result.curve), default=0.0))

    @property
    def next_rate(self) -> float | None:
        """The rate to try next, None when the search is over."""
        if not self.results:
            return self.cell.start_rate
        if self.best is None:  # all diverged so far: smaller
            smaller = [rate for rate in GRID if rate < min(self.results)]
            return smaller[-1] if smaller else None
        return next((rate for rate in neighbours(self.best) if rate not in self.results), None)

    def limits(self) -> Limits:
        """Where the next run of the search ends."""
        leader = None if self.best is None else self.results[self.best]
        needed = None if leader is None else leader.rounds_to(self.cell.target)
        if leader is None or needed is None:
            return Limits(self.cell.cap)
        return Limits(min(self.cell.cap, int(needed) + 1), leader.curve)

    @property
    def is_over(self) -> bool:
        return self.next_rate is None


def search_of(store: Store, cell: Cell, seed: int) -> Search:
    """The search on this seed, from what is on file."""
    return Search(cell, store.results(cell, seed, GRID))


def next_run(store: Store, cell: Cell, seed: int, search_seed: int) -> tuple[Run, Limits] | None:
    """The next training of a cell for a seed; None when there is none, or while the rate is not known yet."""
    search = search_of(store, cell, search_seed)
    if seed == search_seed:
        rate = search.next_rate
        return None if rate is None else (Run(cell, rate, seed), search.limits())
    if not search.is_over or search.best is None:
        return None
    run = Run(cell, search.best, seed)
    return None if store.read(run) else (run, Limits(cell.cap))


def in_order(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """Cells in the order in which they are worth their time."""

    def place(cell: Cell) -> tuple[int, float]:
        named = FIRST.index(cell.name) if cell.name in FIRST else len(FIRST)
        return named, expected_rounds(store, cell) * (store.times().get(key_of(cell)) or 1e6)

    return sorted(cells, key=place)


def queue(
    store: Store, cells: Sequence[Cell], seeds: Sequence[int], tries: int = len(GRID)
) -> Iterator[tuple[Run, Limits]]:
    """All that is missing, the first seed of every cell before the second of any; asks the files anew each time.

    tries: rates of a cell that are tried at most; a search that is not over has no other seeds yet.
    """
    for seed in seeds:
        for cell in cells:
            while (found := next_run(store, cell, seed, seeds[0])) is not None:
                if seed == seeds[0] and len(search_of(store, cell, seed).results) >= tries:
                    break
                yield found


def at_rates(
    store: Store, cells: Sequence[Cell], seeds: Sequence[int], rates: Sequence[float]
) -> Iterator[tuple[Run, Limits]]:
    """Trainings at these rates to their own end, whichever rate leads; one that was abandoned is done again."""
    for seed, cell, rate in product(seeds, cells, rates):
        known = store.read(Run(cell, rate, seed))
        if known is None or known.end == "abandoned":
            yield Run(cell, rate, seed), Limits(cell.cap)


def expected_rounds(store: Store, cell: Cell, seed: int = 0) -> float:
    """Rounds of one training: what the best rate needed, else what the paper needed."""
    search = search_of(store, cell, seed)
    leader = None if search.best is None else search.results[search.best]
    needed = None if leader is None else leader.rounds_to(cell.target)
    return cell.expected if needed is None else needed


def minutes_left(store: Store, cell: Cell, seeds: Sequence[int]) -> float | None:
    """Processor minutes to finish a cell, from the time of a round; None where none was measured."""
    seconds = store.times().get(key_of(cell))
    if seconds is None:
        return None
    rounds, search = expected_rounds(store, cell, seeds[0]), search_of(store, cell, seeds[0])
    todo = 0.0 if search.is_over else max(0.6, SEARCH_COST - len(search.results))
    best = search.best
    todo += sum(best is None or store.read(Run(cell, best, seed)) is None for seed in seeds[1:])
    return todo * rounds * seconds / 60
