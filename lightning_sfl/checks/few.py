"""A handful of a user's own rows: few clients, few rows of each, all of its classes where they have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.population import Population, as_input
from lightning_sfl.data.batches import Batches


class FewRows(LightningDataModule):
    """Clients that own the given rows of a small table; they are validated on the same rows."""

    eval_set = "val"

    def __init__(self, x: Tensor, y: Tensor, rows: Sequence[np.ndarray], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.population = Population(x, y, tuple(rows))

    def example(self) -> Tensor:
        """Two inputs as a model is fed them."""
        return as_input(self.population.x[:2])

    def batch(self) -> tuple[Tensor, Tensor]:
        """All rows of the first client, as a model is fed them."""
        return self.population.take(self.population.rows[0])

    def renamed(self) -> FewRows:
        """The same clients under each other's numbers."""
        rows = self.population.rows
        return FewRows(self.population.x, self.population.y, [*rows[1:], rows[0]], self.num_classes)

    def only(self, clients: Sequence[int]) -> FewRows:
        """These clients, and nobody else."""
        rows = [self.population.rows[client] for client in clients]
        return FewRows(self.population.x, self.population.y, rows, self.num_classes)

    def equal(self) -> FewRows:
        """The same clients, each with as many rows as the smallest."""
        least = min(self.population.sizes)
        rows = [rows[:least] for rows in self.population.rows]
        return FewRows(self.population.x, self.population.y, rows, self.num_classes)

    def poisoned(self, client: int) -> FewRows:
        """All inputs of one client are NaN; its inputs must be floating."""
        x = as_input(self.population.x).clone()
        x[torch.from_numpy(self.population.rows[client])] = float("nan")
        return FewRows(x, self.population.y, self.population.rows, self.num_classes)

    def train_dataloader(self) -> list[int]:
        """One item, one round."""
        return [0]

    def val_dataloader(self) -> Batches:
        """All rows."""
        return Batches(self.population.x, self.population.y, 512)


def few_rows(data: Any, clients: int, rows: int) -> FewRows:
    """The first clients that have two rows, and at most `rows`, `rows` - 1, ... rows of them, class by class."""
    population = data.population
    able = [client for client, size in enumerate(population.sizes) if size >= 2][:clients]
    require(bool(able), "data", type(data).__name__, "a client with at least two rows")
    chosen = [by_turns(population, client)[: max(2, rows - i % 2)] for i, client in enumerate(able)]
    ends = np.cumsum([0, *map(len, chosen)])
    own = [np.arange(start, end) for start, end in pairwise(ends)]
    index = torch.from_numpy(np.concatenate(chosen))
    return FewRows(population.x[index].clone(), population.y[index].clone(), own, data.num_classes)


def by_turns(population: Population, client: int) -> np.ndarray:
    """A client's rows, one of each class in turn; rows with several labels count as of their first."""
    rows = population.rows[client]
    turns: dict[int, int] = defaultdict(int)
    keys = []
    for place, label in enumerate(population.labels_of(rows).reshape(len(rows), -1)[:, 0].tolist()):
        keys.append((turns[label], label, place))
        turns[label] += 1
    return rows[[place for _, _, place in sorted(keys)]]
