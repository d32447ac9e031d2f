"""A round told by hand: halves that a test moves, and the events it sends to watchers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sfl.callbacks import Watcher
from lightning_sfl.core import events
from lightning_sfl.records.report import RoundReport


class Stage:
    """One round of clients with these start vectors; every half is one linear layer without bias, (1, size)."""

    def __init__(self, watchers: Sequence[Any], size: int = 4, server_size: int = 3, copies: bool = False) -> None:
        self.watchers = watchers
        self.client_half, self.server_half = half(size), half(server_size)
        self.slots: list[nn.Module] = []
        self.copies: list[nn.Module | None] = []
        self.keeps_copies = copies
        self.round = 0
        self.population: Any = None
        self.seed = 0

    def tell(self, record: type[Any], *payload: Any) -> None:
        event = record(self.round, *payload)
        for watcher in self.watchers:
            if hasattr(watcher, record.handler):
                getattr(watcher, record.handler)(self, event)

    def start(self, starts: Sequence[Sequence[float]], ids: Sequence[int] | None = None) -> None:
        ids = list(range(len(starts))) if ids is None else ids
        self.ids = list(ids)
        self.tell(events.RoundStart, tuple(ids), self.client_half, self.server_half)
        self.slots = [half(len(start), start) for start in starts]
        size = self.server_half.weight.shape[1]
        self.copies = [half(size) if self.keeps_copies else None for _ in starts]
        for slot, client in enumerate(ids):
            self.tell(events.ClientStart, slot, client, self.slots[slot], self.copies[slot])

    def step(self, moves: Sequence[Sequence[float]], rows: int = 5, replayed: int = 0) -> None:
        """All clients take one step by these moves."""
        turns = []
        for slot, move in enumerate(moves):
            shift(self.slots[slot], move)
            turns.append(events.Turn(slot, self.ids[slot], self.slots[slot], self.copies[slot], rows, replayed))
        self.tell(events.ClientStep, tuple(turns))

    def serve(self, move: Sequence[float], branch: int = 0, rows: int = 5) -> None:
        """One server step."""
        server = self.copies[branch] or self.server_half
        shift(server, move)
        self.tell(events.ServerStep, branch, (self.ids[branch],), rows, server)

    def end(
        self,
        rows: Sequence[int],
        weights: Sequence[float] | None = None,
        merged: Sequence[float] | None = None,
        finished: Sequence[bool] | None = None,
        traffic: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, Any]:
        """End of the round; returns the record."""
        for slot, client in enumerate(self.ids):
            weight = rows[slot] if weights is None else weights[slot]
            done = True if finished is None else finished[slot]
            self.tell(
                events.ClientEnd, slot, client, self.slots[slot], self.copies[slot], rows[slot], 1, float(weight), done
            )
        if merged is not None:
            shift(self.client_half, merged)
        self.tell(events.RoundEnd, self.client_half, self.server_half, traffic or {})
        self.report = RoundReport(self.round)
        for watcher in self.watchers:
            if isinstance(watcher, Watcher):
                watcher.report(self, self.report)
        self.round += 1
        return self.report.record("by_hand")


def half(size: int, values: Sequence[float] | None = None) -> nn.Linear:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer = nn.Linear(size, 1, bias=False).double()
        layer.weight.copy_(torch.tensor([values if values is not None else [0.0] * size]))
    return layer


def shift(module: nn.Module, move: Sequence[float]) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(torch.tensor([move], dtype=torch.float64))


@pytest.fixture
def stage() -> type[Stage]:
    return Stage
