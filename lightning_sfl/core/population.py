"""The population: all clients, each a list of rows of one shared pair of tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import DataError


@dataclass(frozen=True)
class Population:
    """Training data of all clients.

    x: (rows, ...) inputs, stored as they came (uint8 images stay uint8); y: (rows,) or (rows, length) integer labels;
    rows[i]: the rows of client i, int64. Clients own disjoint rows; rows of a held-out split belong to nobody.
    kept[i]: rows of client i that it does not train on, but is judged on; empty where clients keep none.
    """

    x: Tensor
    y: Tensor
    rows: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} labels")
        if not self.rows:
            raise DataError("the population has no clients")

    @property
    def num_clients(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each client."""
        return [len(r) for r in self.rows]

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that change when any client's rows, or the labels on them, change."""
        digest = hashlib.sha256()
        labels = self.y.cpu().numpy()
        for rows in self.rows:
            digest.update(len(rows).to_bytes(8, "little") + np.ascontiguousarray(rows, dtype="<i8").tobytes())
            digest.update(np.ascontiguousarray(labels[rows], dtype="<i8").tobytes())
        return digest.hexdigest()[:8]

    def to(self, device: torch.device) -> Population:
        """The same population with its tensors on `device`."""
        return Population(self.x.to(device), self.y.to(device), self.rows, self.kept)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and labels of these rows, in this order; uint8 images become floats in [0, 1]."""
        index = torch.from_numpy(rows).to(self.x.device)
        return as_input(self.x[index]), self.y[index]

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Labels of these rows, on the host."""
        labels: np.ndarray = self.y[torch.from_numpy(rows).to(self.y.device)].cpu().numpy()
        return labels


def as_input(x: Tensor) -> Tensor:
    """What a model is fed: bytes become floats in [0, 1]; floats have the run's precision at least; integers pass."""
    if x.dtype == torch.uint8:
        return x.to(torch.get_default_dtype()).div_(255)
    return x.to(torch.promote_types(x.dtype, torch.get_default_dtype())) if x.is_floating_point() else x
