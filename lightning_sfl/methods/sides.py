"""The two sides of a local step: what clients do with their halves, and what the server does with its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.cut import Boundary, Reply, Smashed, Upload, cloned, join, parts, raw_of, replies, state_bytes
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.finite import all_finite, clip
from lightning_sfl.core.randomness import seed_torch
from lightning_sfl.core.rounds import Batch, Feed
from lightning_sfl.core.state import copy_state
from lightning_sfl.core.tally import Tally
from lightning_sfl.methods.module import Role
from lightning_sfl.methods.placed import PlacedModule


class ServerTurn(NamedTuple):
    """A step of one server half: which copy, on whose rows, how many."""

    branch: int
    client_ids: tuple[int, ...]
    num_rows: int
    half: nn.Module


class Sides(PlacedModule):
    """Verbs of the loop. Only these touch the client halves, and only through the boundary do tensors cross."""

    whole_on_client: ClassVar[bool] = False
    boundary: Boundary
    feed: Feed
    tally: Tally
    steps_taken: Counter[int]

    # --- the client's side ------------------------------------------------------------------------------------------

    def start_of(self, slot: int) -> nn.Module:
        """The client half that the client in `slot` starts its round from."""
        half: nn.Module = self.client_half
        return half

    def start_client(self, batch: Batch) -> None:
        """Load a client into its slot, when its first turn comes."""
        self.load_slot(batch.slot)
        if self.link.holds(batch.slot):
            self.receive_weights(batch.slot)
        half, private = self.slots[batch.slot], self.private_server(batch.slot)
        self.emit(events.ClientStart, batch.slot, batch.client_id, half, private)

    def load_slot(self, slot: int) -> None:
        """Write what its client starts from into a slot."""
        copy_state(self.start_of(slot), self.slots[slot])
        if self.server_copies:
            copy_state(self.server_half, self.server_slots[slot])

    def receive_weights(self, slot: int) -> None:
        """Count what a participant gets at the start of its round."""
        self.boundary.count("weights", "down", self.owned_bytes)

    def begin(self, batches: Sequence[Batch]) -> None:
        """Load the clients whose first turn this is, wherever they are trained."""
        for batch in batches:
            if batch.local_step == 0:
                self.start_client(batch)

    def take_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and labels of one batch."""
        return self.feed.take(batch)

    def forward_client(self, batch: Batch, x: Tensor) -> Smashed:
        """Smashed data, with its graph."""
        self.draw_from("client", batch)
        smashed: Smashed = self.slots[batch.slot](x)
        return smashed

    def upload(self, batch: Batch) -> Upload:
        """Run the client half on a batch and send what leaves it."""
        x, labels = self.take_turn(batch)
        sent = self.sent_instead(batch, x)
        smashed = self.forward_client(batch, x)
        return self.boundary.upload(batch.slot, batch.client_id, batch.local_step, smashed, labels, sent)

    def uploads(self, batch: Batch) -> list[Upload]:
        """All that goes up at this turn of a client: its own upload comes first, and alone is answered."""
        return [self.upload(batch)]

    def sent_instead(self, batch: Batch, x: Tensor) -> Smashed | None:
        """What goes up instead of the smashed data through which the client will learn; None for those themselves."""
        return None

    def download(self, answers: Sequence[Reply]) -> None:
        """All clients backpropagate their answers, in one walk through their graphs, and take one step."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for answer in answers:
            self.emit_cut_gradient(answer)
            if self.link.holds(answer.upload.slot):
                self.boundary.download(answer.sent)
                pairs += zip(parts(answer.upload.smashed), answer.sent, strict=True)
        learning = [(root, gradient) for root, gradient in pairs if root.requires_grad]
        self.forget_gradients(self.stepped["client"])
        if learning:
            self.walk_back(*map(list, zip(*learning, strict=True)))
        self.step_clients([answer.upload for answer in answers], [gradient for _, gradient in learning])

    def step_clients(self, turns: Sequence[Batch | Upload], cut_gradients: Sequence[Tensor] = ()) -> None:
        """One optimizer step of all active clients: torch leaves slots without gradients alone."""
        seen = tuple(self.client_turn(turn) for turn in turns)
        held = [turn for turn in seen if self.link.holds(turn.slot)]
        self.tell_backward(seen)
        owned = [self.owned(turn.slot) for turn in held]
        self.guard_step(owned, [turn.client_id for turn in held], "client", cut_gradients)
        self.step("client")
        for turn in seen:
            self.steps_taken[turn.slot] += 1
        self.show([turn.slot for turn in seen], events.ClientStep.handler)
        self.emit(events.ClientStep, seen)

    def client_turn(self, turn: Batch | Upload) -> events.Turn:
        """Who is about to move in which slot."""
        return events.Turn(
            turn.slot, turn.client_id, self.slots[turn.slot], self.private_server(turn.slot), turn.num_rows
        )

    # --- the server's side ------------------------------------------------------------------------------------------

    def owned(self, slot: int) -> list[nn.Module]:
        """What the client in this slot holds and trains itself."""
        return [self.slots[slot], self.server_slots[slot]] if self.whole_on_client else [self.slots[slot]]

    @cached_property
    def owned_bytes(self) -> int:
        """Bytes of the weights that a client receives, and sends, in a round."""
        return sum(map(state_bytes, self.owned(0)))

    def private_server(self, slot: int) -> nn.Module | None:
        """The slot's own server copy, where the method keeps copies."""
        return self.server_slots[slot] if self.server_copies else None

    def train_server(self, groups: Sequence[Sequence[Upload]]) -> list[Reply]:
        """One step of the server optimizer on one mean loss per group of uploads; answers in the groups' order.

        Each group is one joined batch through the server half of its first slot, so several groups make sense only
        where slots have private copies. Cut gradients are with respect to the server half before the step.
        """
        answers = self.backward_server(groups)
        self.step_server([self.server_turn(uploads) for uploads in groups], raw_of(answers))
        return answers

    def backward_server(self, groups: Sequence[Sequence[Upload]]) -> list[Reply]:
        """What `train_server` does before the step: fresh server gradients, and the answers."""
        served = [self.forward_server(uploads) for uploads in groups]
        self.forget_gradients(self.stepped["server"])
        self.walk_back([loss for _, _, loss in served])
        answered = zip(groups, served, strict=True)
        return [reply for uploads, (received, logits, _) in answered for reply in replies(uploads, received, logits)]

    def forward_server(self, uploads: Sequence[Upload]) -> tuple[Smashed, Tensor, Tensor]:
        """Joined received data (leaves), logits and mean loss of one group."""
        received = join(uploads)
        labels = torch.cat([upload.labels for upload in uploads])
        self.draw_from("server", uploads[0])
        logits = self.server_logits(uploads, received)
        if self.watchers["on_cut_gradient"]:
            logits.retain_grad()
        return received, logits, self.observed_loss(logits, labels, [upload.client_id for upload in uploads], "server")

    def server_logits(self, uploads: Sequence[Upload], received: Smashed) -> Tensor:
        """The server half of the first upload's slot on the joined data of all of them."""
        logits: Tensor = self.server_of(uploads[0].slot)(cloned(received))
        return logits

    def step_server(self, stepped: Sequence[ServerTurn], cut_gradients: Sequence[Tensor] = ()) -> None:
        """Check, clip and step server halves; what is about to be sent back is checked with them."""
        for turn in stepped:
            self.emit(events.ServerBackward, *turn)
        clients = [client for turn in stepped for client in turn.client_ids]
        self.guard_step([[turn.half] for turn in stepped], clients, "server", cut_gradients)
        self.step("server")
        for turn in stepped:
            self.emit(events.ServerStep, *turn)

    def server_turn(self, turns: Sequence[Batch | Upload]) -> ServerTurn:
        """Who is about to move which server half."""
        branch = turns[0].slot if self.server_copies else 0
        clients = tuple(turn.client_id for turn in turns)
        return ServerTurn(branch, clients, sum(turn.num_rows for turn in turns), self.server_of(branch))

    # --- both sides -------------------------------------------------------------------------------------------------

    def observed_loss(self, logits: Tensor, labels: Tensor, clients: Sequence[int], side: Role) -> Tensor:
        """The mean loss, checked and tallied."""
        loss = self.loss(logits, labels)
        self.stop_unless(math.isfinite(loss.item()), "the loss", clients, side)
        self.tally.add(loss, logits, labels)
        return loss

    def guard_step(
        self,
        owned: Sequence[Sequence[nn.Module]],
        clients: Sequence[int],
        side: Role,
        cut_gradients: Sequence[Tensor] = (),
    ) -> None:
        """Stop before a step with a gradient that is not finite; clip the others, each owner's modules by one norm."""
        parameters = [p for module in chain.from_iterable(owned) for p in self.parameters_of[module]]
        if not all_finite([*(p.grad for p in parameters if p.grad is not None), *cut_gradients]):
            self.stop_unless(all_finite(cut_gradients), "a cut gradient", clients, "server")
            self.stop_unless(False, "a gradient", clients, side)
        if self.clips[side] is not None:
            for modules in owned:
                clip(modules, self.clips[side])

    def stop_unless(self, finite: bool, what: str, clients: Sequence[int] = (), half: str = "") -> None:
        """Raise an error that names method, round, clients and half, unless all is well."""
        if not finite:
            who = f", client{'s' if len(clients) > 1 else ''} {', '.join(map(str, clients))}" if clients else ""
            where = f"{self.method_name}, round {self.current_epoch}{who}{f', {half} half' if half else ''}"
            kept = (
                "nothing was updated with it" if half else "the checkpoint of the round before holds the last good one"
            )
            raise NonFiniteError(f"{what} is not finite in {where}; {kept}")

    def draw_from(self, side: Role, turn: Batch | Upload) -> None:
        """Point torch's generator at this side's own stream, so that dropout does not depend on who ran before."""
        seed_torch(self.seed, side, self.current_epoch, turn.client_id, turn.local_step, self.device)

    def emit_cut_gradient(self, answer: Reply) -> None:
        """Tell what one client is about to backpropagate."""
        upload = answer.upload
        self.emit(
            events.CutGradient, upload.slot, upload.client_id, answer.raw, answer.sent,
            answer.logits, answer.logits_gradient, upload.labels, upload.num_rows, answer.replayed,
        )  # fmt: skip
