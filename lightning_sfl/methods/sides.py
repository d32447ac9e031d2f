"""The two sides of a local step: what clients do with their halves, and what the server does with its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.cut import Boundary, Reply, Smashed, Upload, join, parts, raw_of, replies, state_bytes
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.finite import all_finite, clip
from lightning_sfl.core.rounds import Batch, Feed
from lightning_sfl.core.server_groups import ServerTurn
from lightning_sfl.core.state import copy_state
from lightning_sfl.core.tally import Tally
from lightning_sfl.methods.engine import Engine
from lightning_sfl.methods.module import Role


class Sides(Engine):
    """Verbs of the loop. Only these touch the client halves, and only through the boundary do tensors cross."""

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
        self.give_own(batch.slot, batch.client_id)
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

    def take_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and labels of one batch; at its first one the client is loaded."""
        if batch.local_step == 0:
            self.start_client(batch)
        return self.feed.take(batch)

    def upload(self, batches: Sequence[Batch]) -> list[Upload]:
        """Run each client half on its batch and send what leaves it."""
        inputs, labels = zip(*[self.take_turn(batch) for batch in batches], strict=True)
        instead = [self.sent_instead(*each) for each in zip(batches, inputs, strict=True)]
        smashed = self.forward_clients(batches, inputs)
        return [
            self.boundary.upload(batch.slot, batch.client_id, batch.local_step, *tensors)
            for batch, *tensors in zip(batches, smashed, labels, instead, strict=True)
        ]

    def sent_instead(self, batch: Batch, x: Tensor) -> Smashed | None:
        """What goes up instead of the smashed data through which the client will learn; None for those themselves."""
        return None

    def download(self, answers: Sequence[Reply]) -> None:
        """All clients backpropagate their answers, in one walk through their graphs, and take one step."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for answer in answers:
            self.boundary.download(answer.sent)
            self.emit_cut_gradient(answer)
            pairs += zip(parts(answer.upload.smashed), answer.sent, strict=True)
        roots, gradients = zip(*[(root, gradient) for root, gradient in pairs if root.requires_grad], strict=True)
        self.forget_gradients(self.stepped["client"])
        self.walk_back(roots, gradients)
        self.step_clients([answer.upload for answer in answers], gradients)

    def step_clients(self, turns: Sequence[Batch | Upload], cut_gradients: Sequence[Tensor] = ()) -> None:
        """One optimizer step of all active clients: torch leaves slots without gradients alone."""
        seen = tuple(self.client_turn(turn) for turn in turns)
        self.emit(events.ClientBackward, seen)
        owned = [self.owned(turn.slot) for turn in seen]
        self.guard_step(owned, [turn.client_id for turn in seen], "client", cut_gradients)
        self.step("client")
        for turn in seen:
            self.steps_taken[turn.slot] += 1
        self.emit(events.ClientStep, seen)

    def client_turn(self, turn: Batch | Upload) -> events.Turn:
        """Who is about to move in which slot."""
        return events.Turn(
            turn.slot, turn.client_id, self.slots[turn.slot], self.private_server(turn.slot), turn.num_rows
        )

    # --- without a cut ----------------------------------------------------------------------------------------------

    def backward_uncut(self, batches: Sequence[Batch]) -> None:
        """Each batch through both halves of its slot, end to end: gradients of its mean loss, nothing crosses."""
        inputs, labels = zip(*[self.take_turn(batch) for batch in batches], strict=True)
        outputs = self.forward_privates(batches, self.forward_clients(batches, inputs))
        answered = zip(batches, outputs, labels, strict=True)
        losses = [self.observed_loss(logits, y, [batch.client_id], "client") for batch, logits, y in answered]
        for parameters in self.parameters_of.values():
            self.forget_gradients(parameters)
        self.walk_back(losses)

    # --- the server's side ------------------------------------------------------------------------------------------

    def owned(self, slot: int) -> list[nn.Module]:
        """What the client in this slot holds and trains itself."""
        return [self.slots[slot], self.server_slots[slot]] if self.whole_on_client else [self.slots[slot]]

    @cached_property
    def owned_bytes(self) -> int:
        """Bytes of the weights that a client receives, and sends, in a round."""
        return sum(map(state_bytes, self.owned(0)))

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
        joined = [join(uploads) for uploads in groups]
        outputs = self.forward_servers(groups, joined)
        losses = [self.server_loss(*each) for each in zip(groups, outputs, strict=True)]
        self.forget_gradients(self.stepped["server"])
        self.walk_back(losses)
        answered = zip(groups, joined, outputs, strict=True)
        return [reply for uploads, received, logits in answered for reply in replies(uploads, received, logits)]

    def server_loss(self, uploads: Sequence[Upload], logits: Tensor) -> Tensor:
        """Mean loss of one group."""
        labels = torch.cat([upload.labels for upload in uploads])
        if self.watchers["on_cut_gradient"]:
            logits.retain_grad()
        sizes = [upload.num_rows for upload in uploads]
        return self.observed_loss(logits, labels, [upload.client_id for upload in uploads], "server", sizes)

    def step_server(self, stepped: Sequence[ServerTurn], cut_gradients: Sequence[Tensor] = ()) -> None:
        """Server halves have their gradients: they move, unless other uploads are to have a part in the step."""
        self.move_server(stepped, cut_gradients)

    def move_server(self, stepped: Sequence[ServerTurn], cut_gradients: Sequence[Tensor] = ()) -> None:
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

    def observed_loss(
        self, logits: Tensor, labels: Tensor, clients: Sequence[int], side: Role, sizes: Sequence[int] = ()
    ) -> Tensor:
        """The mean loss, checked and tallied; sizes[i] of the rows are of clients[i], all of them of an only client."""
        loss = self.loss(logits, labels)
        if self.selection.learns:
            self.note_losses(logits, labels, clients, sizes or [len(labels)])
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

    def emit_cut_gradient(self, answer: Reply) -> None:
        """Tell what one client is about to backpropagate."""
        upload = answer.upload
        self.emit(
            events.CutGradient, upload.slot, upload.client_id, answer.raw, answer.sent,
            answer.logits, answer.logits_gradient, upload.labels, upload.num_rows, answer.replayed,
        )  # fmt: skip
