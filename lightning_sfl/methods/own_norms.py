"""Clients that keep their batch-norm layers for themselves, as FedBN has it: `bn_buffers: local`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.own_layers import OwnLayers, norm_state
from lightning_sfl.methods.watched import WatchedModule


class OwnNorms(WatchedModule):
    """Gives a client its own layers back when it is loaded into a slot, and keeps them when it is done.

    What is merged, sent and evaluated is as with `average`; the merged layers are what clients start from that have
    not been seen before. A server half that all clients share is nobody's own. Checkpoints hold what has been kept.

    why_not_local: what to answer where `local` has no meaning.
    """

    why_not_local: ClassVar[str] = ""

    @cached_property
    def own(self) -> OwnLayers:
        """What clients have kept."""
        return OwnLayers()

    def cut(self, example: Tensor) -> None:
        super().cut(example)
        if self.bn_buffers == "local":
            require(not self.why_not_local, "bn_buffers", "local", f"average or first: {self.why_not_local}")
            halves = [self.client_half, *([self.server_half] if self.server_copies else [])]
            none = f"average or first: clients hold no batch-norm layer, with the cut after {self.cut_layer!r}"
            require(any(map(norm_state, halves)), "bn_buffers", "local", none)

    def halves_of(self, slot: int) -> list[nn.Module]:
        """What belongs to the client in this slot alone: its half, and its copy of the server half if it has one."""
        private = self.private_server(slot)
        return [self.slots[slot]] if private is None else [self.slots[slot], private]

    def private_server(self, slot: int) -> nn.Module | None:
        """The slot's own server copy, where the method keeps copies."""
        return self.server_slots[slot] if self.server_copies else None

    def keep_own(self, slot: int, client: int) -> None:
        """A client is done."""
        if self.bn_buffers == "local":
            self.own.keep(client, self.halves_of(slot))

    def give_own(self, slot: int, client: int) -> None:
        """A client has been loaded."""
        if self.bn_buffers == "local":
            self.own.give_back(client, self.halves_of(slot))

    def memory(self) -> dict[str, Any]:
        kept = {"own_norms": self.own.kept} if self.bn_buffers == "local" else {}
        return {**super().memory(), **kept}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.own.load(memory.get("own_norms", {}), self.device)
