"""Where the clients of a round started: copies of their trainable parameters, made once for all watchers."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sfl.core.events import ClientStart
from lightning_sfl.measures.gram import trainable


@dataclass(eq=False)
class Start:
    """Copies of a client's half, and of its private server copy where there is one, as they were at its start."""

    client: list[Tensor]
    server: list[Tensor] | None


class _Latest:
    """The copies made for the event that is being delivered; neither is kept alive from here."""

    event: weakref.ref[ClientStart] | None = None
    start: weakref.ref[Start] | None = None


def start_of(event: ClientStart) -> Start:
    """Copies of where this client starts; watchers of the same event share them and must not write to them."""
    known = _Latest.start() if _Latest.start and _Latest.event and _Latest.event() is event else None
    if known is None:
        server = None if event.server_half is None else copied(event.server_half)
        known = Start(copied(event.client_half), server)
        _Latest.event, _Latest.start = weakref.ref(event), weakref.ref(known)
    return known


def copied(module: nn.Module) -> list[Tensor]:
    """Copies of the trainable parameters."""
    return [parameter.clone() for parameter in trainable(module)]


def moved(module: nn.Module, start: Sequence[Tensor]) -> list[Tensor]:
    """Trainable parameters now minus at the start."""
    return difference(trainable(module), start)


def difference(now: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """now - before, tensor by tensor; an empty list where nothing is trainable."""
    return list(torch._foreach_sub(list(now), list(before))) if now else []


def square(vector: Sequence[Tensor]) -> Tensor:
    """Squared norm in float64, on the device."""
    if not vector:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(list(vector))).double().square().sum()


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
