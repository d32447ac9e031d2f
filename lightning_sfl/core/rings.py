"""Rings: each client's rows of each class, drawn in turn and remembered from round to round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.memory import Memory


def ring_take(ring: np.ndarray, pointer: int, amount: int) -> tuple[np.ndarray, int]:
    """`amount` consecutive entries of a ring from `pointer` on, and where the next draw begins.

    More than the ring holds is whole rounds of it and then the rest, so that every entry comes equally often within 1.
    """
    if amount == 0 or len(ring) == 0:
        return ring[:0], pointer
    rounds, rest = divmod(amount, len(ring))
    places = (pointer + np.arange(rest)) % len(ring)
    return np.concatenate([np.tile(ring, rounds), ring[places]]), (pointer + rest) % len(ring)


class Rings(Memory):
    """A pointer for every client and class. Draws are a draft until they are kept, so a plan can be made again."""

    pointers: Tensor

    def __init__(self) -> None:
        super().__init__(pointers=torch.zeros(0, 0, dtype=torch.int64))

    def prepare(self, labels: np.ndarray, rows: Sequence[np.ndarray], num_classes: int) -> None:
        """All pointers to the beginning; labels: one class for each row of the population."""
        self.labels, self.rows = labels, rows
        self.pointers = self.pointers.new_zeros(len(rows), num_classes)
        self.draft()

    def draft(self) -> None:
        """Begin where what was kept last ended."""
        self.drafted = self.pointers.cpu().numpy().copy()

    def draw(self, client: int, amounts: np.ndarray) -> np.ndarray:
        """amounts[l] rows of each class l of this client, in the order of its own rows."""
        own, pointers, places = self.rows[client], self.drafted[client], [np.zeros(0, np.int64)]
        for label in np.flatnonzero(amounts):
            ring = np.flatnonzero(self.labels[own] == label)
            taken, pointers[label] = ring_take(ring, int(pointers[label]), int(amounts[label]))
            places.append(taken)
        return own[np.sort(np.concatenate(places))]

    def keep(self) -> None:
        """The draft is what happened."""
        self.pointers.copy_(torch.from_numpy(self.drafted))
