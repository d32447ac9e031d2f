"""Where the clients of a round started: copies of their trainable parameters, made once for all watchers."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import Row, copied
from lightning_sfl.core.events import ClientEnd, ClientStart
from lightning_sfl.measures.gram import trainable

T = TypeVar("T")


@dataclass(eq=False)
class Start:
    """Copies of a client's half, and of its private server copy where there is one, as they were at its start."""

    client: Row
    server: Row | None


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


def start_of(event: ClientStart) -> Start:
    """Copies of where this client starts; watchers of the same event share them and must not write to them."""

    def make() -> Start:
        server = None if event.server_half is None else copied(trainable(event.server_half))
        return Start(copied(trainable(event.client_half)), server)

    return _shared(event, "start", make)


def update_of(event: ClientEnd, start: Row) -> Tensor:
    """How far this client's half has moved, one vector; shared like its start."""
    return _shared(event, "update", lambda: moved(event.client_half, start))


@torch.no_grad()
def moved(module: nn.Module, start: Row) -> Tensor:
    """Trainable parameters now minus at the start, as one vector."""
    row = copied(trainable(module))
    return row.flat.sub_(start.flat)


class Visits:
    """Names for the visits of a round: `7` for client 7, `7.1` when it comes a second time in the same round."""

    def __init__(self) -> None:
        self.count: Counter[int] = Counter()
        self.in_slot: dict[int, tuple[int, str]] = {}

    def start(self, slot: int, client_id: int) -> str:
        """The name of the visit that begins in this slot."""
        visit = self.count[client_id]
        self.count[client_id] += 1
        key = f"{client_id}.{visit}" if visit else f"{client_id}"
        self.in_slot[slot] = (client_id, key)
        return key

    def of(self, slot: int, client_id: int) -> str:
        """The name of the visit under way in this slot; one carried over from the round before begins here."""
        client, key = self.in_slot.get(slot, (None, ""))
        return key if client == client_id else self.start(slot, client_id)
