"""Asynchronous methods that merge updates a buffer at a time: what a client has moved by since it got its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.staleness import HandedIn
from lightning_sfl.core.state import State, buffers_of, state_of
from lightning_sfl.methods.asynchronous_whole import AsynchronousWhole


class BufferedUpdates(AsynchronousWhole):
    """A round is one merge. Batch-norm statistics, which are no updates, are merged as they were handed in.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `AsynchronousMethod`.
    """

    def __init__(self, backbone: nn.Module, cut_layer: str, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.versions: dict[int, State] = {}

    def load_slot(self, slot: int) -> None:
        """Keep the weights of this version, as long as somebody trains on from them."""
        super().load_slot(slot)
        if self.visits.merges not in self.versions:
            now = state_of(self.merged_halves())
            self.versions[self.visits.merges] = {name: tensor.clone() for name, tensor in now.items()}

    def merge(self, plan: Plan) -> None:
        self.handed_in.sort(key=lambda each: each.slot)  # so that sums do not depend on who came first
        states, weights = self.to_be_merged()
        self.put_together(states, weights, [each.client for each in self.handed_in])
        self.handed_in.clear()
        self.count_merge()
        self.versions = {v.version: self.versions[v.version] for v in self.visits.in_slot.values()}

    def to_be_merged(self) -> tuple[list[State], list[float]]:
        """For each client in the buffer a state, the weights of now plus what is to come of its update; its weight."""
        raise NotImplementedError(f"{type(self).__name__} has no to_be_merged()")

    def start_of_visit(self, came: HandedIn) -> State:
        """The weights that this client started from."""
        return self.versions[self.visits.merges - came.missed]

    @torch.no_grad()
    def moved_to_now(self, came: HandedIn, scale: float = 1.0) -> State:
        """The weights of this version plus the client's update, scaled; a fresh one is what it handed in, exactly."""
        if not came.missed and scale == 1:
            return came.state
        start, halves = self.start_of_visit(came), self.merged_halves()
        now, as_they_are = state_of(halves), buffers_of(halves)
        return {
            name: tensor if name in as_they_are else now[name] + scale * (tensor - start[name])
            for name, tensor in came.state.items()
        }

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "versions": self.versions}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.versions = {version: self.brought_home(state) for version, state in memory["versions"].items()}
