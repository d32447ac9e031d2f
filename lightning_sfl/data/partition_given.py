"""Partitions that are in the data already: by natural owner, or read from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typing_extensions import override

from lightning_sfl.core.errors import DataError, require
from lightning_sfl.data.partition import Partition, Parts


class Natural(Partition):
    """One client for each owner the source names (a writer, a speaking role).

    `num_clients=None` takes every owner; a smaller number takes a seeded uniform draw of them, not the largest, so that
    the spread of sizes stays that of the data. Rows of the others stay unused.
    """

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        if owner is None:
            raise DataError("partition Natural: this source names no owner of its rows; choose another partition")
        names = np.unique(owner)
        if num_clients is not None:
            require(1 <= num_clients <= len(names), "num_clients", num_clients, f"the source has {len(names)} owners")
            names = np.sort(rng.choice(names, num_clients, replace=False))
        return [np.flatnonzero(owner == name).astype(np.int64) for name in names]


class FromFile(Partition):
    """Rows read from a JSON file: a list of lists of row numbers, or a manifest that this package wrote.

    Row numbers are those of the source's training set; rows that the run holds out for validation are left out.
    `num_clients` must be null or the number of lists.
    """

    sees_held_out = True

    def __init__(self, path: str) -> None:
        self.path = path

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        parts = self._read()
        allowed = f"{self.path} lists {len(parts)} clients; give that number or null"
        require(num_clients in (None, len(parts)), "num_clients", num_clients, allowed)
        every = np.concatenate(parts)
        if every.min(initial=0) < 0 or every.max(initial=0) >= len(labels):
            raise DataError(f"partition file {self.path}: row numbers must lie in 0..{len(labels) - 1}")
        if len(np.unique(every)) != len(every):
            raise DataError(f"partition file {self.path}: a row is listed twice; clients own disjoint rows")
        return [np.sort(rows) for rows in parts]

    def _read(self) -> Parts:
        try:
            content = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"partition file {self.path}: cannot be read as JSON ({error})") from error
        lists = content.get("rows") if isinstance(content, dict) else content
        if not isinstance(lists, list) or not lists or not all(_is_row_list(rows) for rows in lists):
            raise DataError(f"partition file {self.path}: must hold lists of row numbers, or such lists under 'rows'")
        return [np.array(rows, dtype=np.int64) for rows in lists]


def _is_row_list(rows: object) -> bool:
    return isinstance(rows, list) and all(type(row) is int for row in rows)
