"""Batches without a DataLoader: slices of two tensors, in order."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from lightning_sfl.core.population import as_input


class Batches:
    """Consecutive (x, y) slices of `size` rows, or x alone where there is no y; inputs as a model is fed them."""

    def __init__(self, x: Tensor, y: Tensor | None, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.size)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for start in range(0, len(self.x), self.size):
            x = as_input(self.x[start : start + self.size])
            yield x if self.y is None else (x, self.y[start : start + self.size])
