"""The trail of a half: where it started, and how far it went; computed once for all watchers that ask."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import Room, copy_into, norms, row_of
from lightning_sfl.measures.gram import trainable

T = TypeVar("T")


class Trail:
    """A half's trainable parameters: live, and as one row as they were at the start, which nobody may write to."""

    def __init__(self, half: nn.Module) -> None:
        self.now = trainable(half)
        self.start = row_of(self.now)
        self._steps: tuple[Room, Room] | None = None
        self._step: weakref.ref[Any] | None = None

    @cached_property
    def room(self) -> Room:
        """Room to compute in."""
        return Room(self.now)

    def update(self) -> Tensor:
        """Now minus at the start, one vector."""
        return row_of(self.now).sub_(self.start)

    def length(self, step: Any) -> Tensor:
        """Length of this step, an event; asked for at every step, or not at all."""
        now, before = self._arrive(step)
        return self._apart(now, before.row)

    def distance(self, step: Any, origin: Tensor) -> Tensor:
        """Distance from a row, such as the start, after this step."""
        now, _ = self._arrive(step)
        return self._apart(now, origin)

    def _arrive(self, step: Any) -> tuple[Room, Room]:
        """Copies of where the half is and of where it was before this step."""
        if self._steps is None:
            self._steps = (Room(self.now), Room(self.now))
            self._steps[0].row.copy_(self.start)
        if self._step is None or self._step() is not step:
            self._step = weakref.ref(step)
            self._steps = (self._steps[1], self._steps[0])
            copy_into([self._steps[0]], [self.now])
        return self._steps

    def _apart(self, now: Room, other: Tensor) -> Tensor:
        torch.sub(now.row, other, out=self.room.row)
        return norms([self.room.row])[0]


def distances(trails: Sequence[Trail], origins: Sequence[Tensor]) -> list[Tensor]:
    """How far each of these halves is from its row, such as its start."""
    rooms = [trail.room for trail in trails]
    copy_into(rooms, [trail.now for trail in trails])
    rows = [room.row for room in rooms]
    torch._foreach_sub_(rows, list(origins))
    return norms(rows)


class _Latest:
    """What was computed for the event that is being delivered; nothing is kept alive from here."""

    event: weakref.ref[Any] | None = None
    made: ClassVar[dict[str, weakref.ref[Any]]] = {}


def _shared(event: Any, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, made once for all watchers of this event."""
    if _Latest.event is None or _Latest.event() is not event:
        _Latest.event, _Latest.made = weakref.ref(event), {}
    known: T | None = _Latest.made[name]() if name in _Latest.made else None
    if known is None:
        known = make()
        _Latest.made[name] = weakref.ref(known)
    return known


def trail_of(event: Any, half: nn.Module) -> Trail:
    """The trail of this half that begins with this event."""
    return _shared(event, f"trail of {id(half)}", lambda: Trail(half))


def update_of(event: Any, trail: Trail) -> Tensor:
    """How far a half has come at this event, one vector; nobody may write to it."""
    return _shared(event, f"update of {id(trail)}", trail.update)
