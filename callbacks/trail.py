"""The trail of a server half: how far each step goes and how far it has come, with one copy for all who ask."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import Row, copied, copy_into, norms
from lightning_sfl.callbacks.starts import shared
from lightning_sfl.measures.gram import trainable


class Trail:
    """Where a half started, where it was before its last step, where it is; and room to compute in."""

    def __init__(self, half: nn.Module) -> None:
        self.now = trainable(half)
        self.start, self.before, self.at, self.room = copied(self.now), Row(self.now), copied(self.now), Row(self.now)
        self.step: weakref.ref[Any] | None = None

    def length(self, step: Any) -> Tensor:
        """Length of this step, an event; asked for at every step, or not at all."""
        self._arrive(step)
        return self._apart(self.before)

    def distance(self, step: Any) -> Tensor:
        """Distance from the start after this step."""
        self._arrive(step)
        return self._apart(self.start)

    def _arrive(self, step: Any) -> None:
        if self.step is None or self.step() is not step:
            self.step = weakref.ref(step)
            self.before, self.at = self.at, self.before
            copy_into([self.at], [self.now])

    def _apart(self, other: Row) -> Tensor:
        torch.sub(self.at.flat, other.flat, out=self.room.flat)
        return norms([self.room])[0]


def trail_of(event: Any, half: nn.Module) -> Trail:
    """The trail that begins with this event."""
    return shared(event, f"trail of {id(half)}", lambda: Trail(half))
