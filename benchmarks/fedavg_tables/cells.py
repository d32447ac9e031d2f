"""A cell of the paper's tables: which training, up to which accuracy, and what is tried for its learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning_sfl.core.errors import require

# Factors of 10^(1/3), as in the paper.
GRID = (0.01, 0.0215, 0.0464, 0.1, 0.215, 0.464, 1.0, 2.15, 4.64)
IID, NON_IID = "iid", "noniid"
VARIED = ("start", "inputs")  # fields that the tables leave at their defaults


@dataclass(frozen=True)
class Cell:
    """One training.

    network: 2nn, cnn, lstm or cifar; split: iid or noniid (two shards a client, or a role each for the play); fraction:
    C, where 0 is one client; batch_size: B, None for a client's whole data; targets: test accuracies, the last of which
    ends the run; start_rate: where the search begins; cap: rounds after which the target counts as not reached;
    expected: rounds of a training while none is known, for estimates; start, inputs: how weights begin and pixels are
    scaled, in the words of `variants`.
    """

    method: str
    network: str
    split: str
    fraction: float
    epochs: int
    batch_size: int | None
    targets: tuple[float, ...]
    start_rate: float
    cap: int
    expected: int
    decay: float = 1.0
    start: str = "pytorch"
    inputs: str = "unit"

    @property
    def name(self) -> str:
        """What the cell is called on the command line and in file names."""
        parts = [self.network, *([] if self.method == "sgd" else [self.split])]
        if self.method == "fedavg":
            parts += [f"C{self.fraction}", *([] if self.network == "2nn" else [f"E{self.epochs}"])]
            parts.append(f"B{self.batch_size or 'inf'}")
        else:
            parts.append(self.method)
        return "-".join([*parts, *self.variant.values()])

    @property
    def variant(self) -> dict[str, str]:
        """What of `start` and `inputs` is not the tables' own."""
        return {key: getattr(self, key) for key in VARIED if getattr(self, key) != getattr(Cell, key)}

    @property
    def target(self) -> float:
        """The accuracy that ends a run."""
        return self.targets[-1]

    @property
    def work(self) -> tuple[Any, ...]:
        """What the time of a round depends on: cells that share it take equally long."""
        split = self.split if self.network == "lstm" else ""
        return (self.method, self.network, split, self.fraction, self.epochs, self.batch_size)

    def definition(self) -> dict[str, Any]:
        """What a result depends on; not the start of the search, the cap, or the estimate."""
        left_out = ("start_rate", "cap", "expected", *VARIED)
        plain = {key: value for key, value in asdict(self).items() if key not in left_out}
        return plain | {"targets": list(self.targets)} | self.variant


@dataclass(frozen=True)
class Run:
    """One training of a cell."""

    cell: Cell
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.cell.name}_lr{self.rate:g}_seed{self.seed}"


def neighbours(rate: float) -> list[float]:
    """The next larger and the next smaller rate of the grid, as far as there are such."""
    require(rate in GRID, "rate", rate, f"one of {', '.join(map(str, GRID))}")
    place = GRID.index(rate)
    return [GRID[i] for i in (place + 1, place - 1) if 0 <= i < len(GRID)]


def participants_of(fraction: float, clients: int) -> int:
    """max(floor(C K), 1), the paper's number of clients a round; a share as 0.29 of 100 is 29, not 28."""
    return max(math.floor(fraction * clients + 1e-9), 1)
