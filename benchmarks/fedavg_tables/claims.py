"""What the paper concludes from its tables, held against what was measured: a claim stands, falls or is open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.fedavg_tables.cells import Cell
from benchmarks.fedavg_tables.paper import TABLES, Entry
from lightning_sfl.records.curves import Spread

Rounds = Callable[[Cell, float], Spread | None]
Comparison = tuple[str, Spread | None, Spread | None]
# the strongest last: one comparison that fails decides over those that hold
VERDICTS: Mapping[str, str] = {
    "open": "open, cells are missing",
    "holds": "holds",
    "unclear": "holds but where seeds differ as much",
    "fails": "does not hold",
}
NEVER = Spread(math.inf, None, 1, 1)


@dataclass(frozen=True)
class Claim:
    """A claim with one line for each comparison it consists of."""

    text: str
    lines: tuple[str, ...]
    verdict: str


def judged(text: str, comparisons: Iterable[Comparison]) -> Claim:
    """A claim that each first figure is smaller than the second; None is a figure that was not measured."""
    lines, verdicts = [], []
    for label, fewer, more in comparisons:
        verdict = compared(fewer, more)
        verdicts.append(verdict)
        if fewer is not None and more is not None and verdict != "open":
            mark = {"fails": ", **not so**", "unclear": ", *no more than seeds differ*"}.get(verdict, "")
            lines.append(f"{label}: {shown(fewer)} against {shown(more)}{mark}")
    overall = max(verdicts, key=list(VERDICTS).index, default="open")
    missing = verdicts.count("open")
    part = f" ({missing} of {len(verdicts)} comparisons open)" if missing and overall != "open" else ""
    return Claim(text, tuple(lines), VERDICTS[overall] + part)


def compared(fewer: Spread | None, more: Spread | None) -> str:
    """Whether the first is smaller; unclear where the difference is below the seeds' deviation, of both together."""
    if fewer is None or more is None or fewer.mean is None or more.mean is None or fewer.mean == more.mean == math.inf:
        return "open"
    if abs(fewer.mean - more.mean) <= math.hypot(fewer.sd or 0.0, more.sd or 0.0):
        return "unclear"
    return "holds" if fewer.mean < more.mean else "fails"


def shown(found: Spread) -> str:
    """Rounds as a word."""
    return "not reached" if found.mean is None or found.mean == math.inf else f"{found.mean:.0f}"


def find(table: str, **wanted: object) -> Iterator[Entry]:
    """Entries whose cells have these fields."""
    for entry in TABLES[table].entries:
        if all(getattr(entry.cell, key) == value for key, value in wanted.items()):
            yield entry


def claims(rounds: Rounds) -> list[Claim]:
    """All of them; rounds(cell, target) is what was measured, the mean over seeds."""
    return [
        judged("Each step to more clients a round takes fewer rounds (B=10)", more_clients(rounds, 10)),
        judged("Each step to more clients a round takes fewer rounds with B=inf too", more_clients(rounds, None)),
        judged("One client a round (C=0) takes the most rounds (B=10)", one_client(rounds)),
        judged("B=10 takes fewer rounds than B=inf", small_batches(rounds)),
        judged("More local work takes fewer rounds, each measured step of it (CNN, IID)", more_work(rounds, "iid")),
        judged(
            "More local work takes fewer rounds, each measured step of it (CNN, non-IID)", more_work(rounds, "noniid")
        ),
        judged("More epochs take fewer rounds with the same batches (CNN)", more_epochs(rounds)),
        judged("FedAvg takes fewer rounds than FedSGD (CNN, each amount of work)", against_fedsgd(rounds)),
        judged("FedAvg takes fewer rounds than FedSGD (2NN, where E=1 with B=inf is FedSGD)", two_layer(rounds)),
        judged("IID data take fewer rounds than non-IID", iid_first(rounds)),
        judged("Too much local work hurts: E=20 takes more rounds than E=5 (non-IID, B=50)", too_much(rounds)),
    ]


def _of(rounds: Rounds, entry: Entry) -> Spread | None:
    return rounds(entry.cell, entry.target)


def more_clients(rounds: Rounds, batch_size: int | None) -> Iterator[Comparison]:
    """Neighbouring rows of a column of table 1."""
    for network in ("2nn", "cnn"):
        for split in ("iid", "noniid"):
            column = list(find("table1", network=network, split=split, batch_size=batch_size))
            for few, many in pairwise(column):
                yield f"{many.where} against {few.row}", _of(rounds, many), _of(rounds, few)


def one_client(rounds: Rounds) -> Iterator[Comparison]:
    """The first row of a column of table 1 and each other."""
    for network in ("2nn", "cnn"):
        for split in ("iid", "noniid"):
            first, *others = find("table1", network=network, split=split, batch_size=10)
            for other in others:
                yield f"{other.where} against {first.row}", _of(rounds, other), _of(rounds, first)


def small_batches(rounds: Rounds) -> Iterator[Comparison]:
    """Neighbouring columns of table 1."""
    for small in find("table1", batch_size=10):
        cell = small.cell
        for whole in find("table1", network=cell.network, split=cell.split, fraction=cell.fraction, batch_size=None):
            yield f"{small.where} against {whole.column}", _of(rounds, small), _of(rounds, whole)


def more_work(rounds: Rounds, split: str) -> Iterator[Comparison]:
    """Rows of table 2, which the paper sorts by updates a round, each with the nearest measured one before it."""
    less, *others = find("table2", split=split)
    for more in others:
        found = _of(rounds, more)
        yield f"{more.where} against {less.row}", found, _of(rounds, less)
        less = less if found is None else more


def more_epochs(rounds: Rounds) -> Iterator[Comparison]:
    """Rows of table 2 that differ in E alone."""
    for split in ("iid", "noniid"):
        for size in (None, 50, 10):
            rows = sorted(find("table2", split=split, batch_size=size), key=lambda entry: entry.cell.epochs)
            for less, more in pairwise(rows):
                yield f"{more.where} against {less.row}", _of(rounds, more), _of(rounds, less)


def against_fedsgd(rounds: Rounds) -> Iterator[Comparison]:
    """The first row of table 2 and each other."""
    for split in ("iid", "noniid"):
        fedsgd, *others = find("table2", split=split)
        for other in others:
            yield f"{other.where}", _of(rounds, other), _of(rounds, fedsgd)


def two_layer(rounds: Rounds) -> Iterator[Comparison]:
    """FedSGD on the smaller network."""
    for split in ("iid", "noniid"):
        (small,) = find("table1", network="2nn", split=split, fraction=0.1, batch_size=10)
        (whole,) = find("table1", network="2nn", split=split, fraction=0.1, batch_size=None)
        yield small.where, _of(rounds, small), _of(rounds, whole)


def iid_first(rounds: Rounds) -> Iterator[Comparison]:
    """Columns of table 1 that differ in the split alone."""
    for even in find("table1", split="iid"):
        cell = even.cell
        for uneven in find(
            "table1", network=cell.network, split="noniid", fraction=cell.fraction, batch_size=cell.batch_size
        ):
            yield f"{even.where} against {uneven.column}", _of(rounds, even), _of(rounds, uneven)


def too_much(rounds: Rounds) -> Iterator[Comparison]:
    """Two rows of table 2."""
    (less,) = find("table2", split="noniid", epochs=5, batch_size=50)
    (more,) = find("table2", split="noniid", epochs=20, batch_size=50)
    yield f"{less.where} against {more.row}", _of(rounds, less), _of(rounds, more)
