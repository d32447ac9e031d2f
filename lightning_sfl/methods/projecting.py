"""Clients that hold the whole network and send scalars of their gradient: their side, and what its messages cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.cut import num_bytes
from lightning_sfl.core.errors import PlacementError, require
from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.holograd.projection import Projection, chain_loss, flat, project_gradients, project_loss
from lightning_sfl.core.holograd.synthesis import upload_bytes
from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.state import buffers_of
from lightning_sfl.core.sync_ledger import SyncLedger
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.methods.module import Role


class ProjectingMethod(SplitMethod):
    """One step of the server optimizer a round moves both halves; all of a client's rows make its one gradient."""

    why_not_local = "clients send scalars and keep no weights"
    why_only_averaged = "`robust` says what becomes of clients' scalars"
    why_not_moved = "server_optimizer takes the step"
    why_not_by_rows = "clients send scalars, not gradients"
    why_full = "`stragglers` says whose scalars are waited for"
    why_same_work = "there is no local training"
    timed = False
    one_device = "its scalars are of both halves together"
    server_copies = True
    whole_on_client = True
    whole_loss = "its one step needs the scalars of all clients"
    ledger: SyncLedger
    received: Tensor

    def __init__(
        self, backbone: nn.Module, cut_layer: str, projection: Projection, byzantine: Byzantine | None, **kwargs: Any
    ) -> None:
        super().__init__(
            backbone, cut_layer, client_optimizer=None, client_scheduler=None, client_clip=None,
            batch_size=None, local_epochs=1, local_steps=None, **kwargs,
        )  # fmt: skip
        require(projection in ("grad", "jvp", "fd"), "projection", projection, "one of grad, jvp, fd")
        self.projection: Projection = projection
        self.byzantine = byzantine

    def trained(self) -> dict[Any, list[nn.Parameter]]:
        return {"server": [*self.client_half.parameters(), *self.server_half.parameters()]}

    def named_parameters_whole(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable parameters of the merged network by the backbone's names; their order is that of the vector."""
        halves = (self.client_half, self.server_half)
        return [(name, p) for half in halves for name, p in half.named_parameters() if p.requires_grad]

    def parameters_at(self, batch: Batch) -> list[nn.Parameter]:
        """The same parameters in this client's slot."""
        return [p for half in self.owned(batch.slot) for p in half.parameters() if p.requires_grad]

    def departures(self) -> dict[str, str]:
        """A few scalars do not make a gradient."""
        estimated = "the step is taken with an estimate of the gradient"
        replayed = "clients follow from messages of scalars, and get weights only when they are new"
        return {"one_step": estimated, "one_client": estimated, "bytes": replayed}

    # --- scalars ----------------------------------------------------------------------------------------------------

    def receive_scalars(self, batches: Sequence[Batch], sets: Sequence[Directions]) -> Tensor:
        """What arrives: each client's scalars (clients, K) along its set of directions, or what a liar made of them."""
        sent = self.project(batches, sets)
        if not self.link.alone:
            self.link.bring({batch.slot: [row] for batch, row in zip(batches, sent, strict=True)})
            self.show_gradients(batches)
        if self.byzantine is not None:
            liars = self.byzantine.liars(self.seed, self.num_clients)
            lying = [batch.client_id in liars for batch in batches]
            sent = self.byzantine.corrupt(sent, lying, self.seed, self.current_epoch)
        for batch, directions, scalars in zip(batches, sets, sent, strict=True):
            self.emit(events.ScalarsSent, batch, *self.owned(batch.slot), directions, scalars)
        return sent

    def project(self, batches: Sequence[Batch], sets: Sequence[Directions]) -> Tensor:
        """Each client's true scalars; those who share a set are projected in one pass over it.

        Clients of other processes have zeros here: rounding depends on how many rows a product has, not on the others.
        """
        if self.projection != "grad":
            self.begin(batches)
            return torch.stack([self.project_forward(*each) for each in zip(batches, sets, strict=True)])
        self.backward_uncut(batches)
        gradients = [flat([p.grad for p in own], own) for own in map(self.parameters_at, batches)]
        if all(each is sets[0] for each in sets):
            return project_gradients(torch.stack(gradients), sets[0])
        return torch.cat([project_gradients(g[None], each) for g, each in zip(gradients, sets, strict=True)])

    def project_forward(self, batch: Batch, directions: Directions) -> Tensor:
        """One client's scalars without a backward pass; one more pass is for its loss and buffers."""
        if not self.link.holds(batch.slot):
            self.tally.skip()
            return directions.basis.new_zeros(len(directions.basis) + len(directions))
        x, labels = self.take_turn(batch)
        halves = self.owned(batch.slot)
        sides: tuple[Role, Role] = ("client", "server")

        def draw(half: int) -> None:
            self.draw_from(sides[half], batch)

        with torch.no_grad():
            (logits,) = self.forward_privates([batch], self.forward_clients([batch], [x]))
            self.observed_loss(logits, labels, [batch.client_id], "client")
        at = chain_loss(halves, x, lambda logits: self.loss(logits, labels), draw)
        return project_loss(at, self.parameters_at(batch), directions, self.projection)

    # --- other processes --------------------------------------------------------------------------------------------

    def check_in_step(self, directions: Directions) -> None:
        """Processes whose weights differ in a bit draw other directions, and would part without a word."""
        own = [float(byte) for byte in directions.seeds[0]]
        if not self.link.alone and self.link.from_server(own) != own:
            raise PlacementError(
                f"rank {self.link.rank}, round {self.current_epoch}: some bit of the weights is not that of rank 0, so "
                f"directions differ: {self.method_name} needs processes of one arithmetic (kind of machine, threads)"
            )

    def live(self, slot: int) -> list[Tensor | None]:
        """Of what a client trains only buffers are merged; its scalars have travelled before."""
        return [buffer for half in self.owned(slot) for buffer in buffers_of(half).values()]

    def bring(self, slots: Iterable[int]) -> None:
        if self.buffer_bytes:
            super().bring(slots)

    def show_gradients(self, batches: Sequence[Batch]) -> None:
        """Have the gradients that these scalars are of stand in the slots until the round ends, if somebody looks."""
        if self.projection == "grad" and self.looked_at(events.ScalarsSent.handler):
            self.link.show({batch.slot: self.gradients_here(batch.slot) for batch in batches})

    # --- bytes ------------------------------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes of what a newcomer needs besides the seeds."""
        return self.owned_bytes

    @property
    def buffer_bytes(self) -> int:
        return num_bytes(b for half in (self.client_half, self.server_half) for b in buffers_of(half).values())

    def receive_weights(self, slot: int) -> None:
        client = self.feed.plan.participants[slot]
        state, missed = self.ledger.catch_up(client, self.state_bytes())
        self.boundary.count("weights", "down", state or self.buffer_bytes)
        self.boundary.count("scalars", "down", missed)

    def send_weights(self, slot: int) -> None:
        """Scalars travel up, not weights; buffers, which have no gradient, as they are."""
        self.boundary.count("scalars", "up", upload_bytes(self.received.shape[1]))
        if self.buffer_bytes:
            self.boundary.count("weights", "up", self.buffer_bytes)

    # --- the step ---------------------------------------------------------------------------------------------------

    def guard_step(self, owned: Any, clients: Sequence[int], side: Role, cut_gradients: Sequence[Tensor] = ()) -> None:
        """The one step moves both halves, so they are checked, and bounded by one norm, together."""
        super().guard_step([[self.client_half, self.server_half]], clients, side, cut_gradients)
