"""The two sides of a local step: what clients do with their halves, and what the server does with its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.cut import Boundary, Reply, Smashed, Upload, parts, state_bytes
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.finite import all_finite, clip
from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.state import copy_state
from lightning_sfl.core.tally import Tally
from lightning_sfl.methods.module import Role
from lightning_sfl.methods.server_side import ServerSide


class Sides(ServerSide):
    """Verbs of the loop. Only these touch the client halves, and only through the boundary do tensors cross."""

    boundary: Boundary
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

    def upload(self, batches: Sequence[Batch]) -> list[Upload]:
        """Run each client half on its batch and send what leaves it; of one client, the first upload is answered."""
        if not batches:
            return []
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
            if self.link.holds(answer.upload.slot):
                self.boundary.download(answer.sent)
                pairs += zip(parts(answer.upload.smashed), answer.sent, strict=True)
        learning = [(root, gradient) for root, gradient in pairs if root.requires_grad]
        self.forget_gradients(self.stepped["client"])
        if self.sample_dp is not None:
            self.descend_cut(answers)
        elif learning:
            self.walk_back(*map(list, zip(*learning, strict=True)))
        self.link.settle()
        for answer in self.shown_answers(answers):
            self.emit_cut_gradient(answer)
        turns = [self.client_turn(answer.upload, answer.replayed) for answer in answers]
        self.step_clients(turns, [gradient for _, gradient in learning])

    def step_clients(self, turns: Sequence[events.Turn], cut_gradients: Sequence[Tensor] = ()) -> None:
        """One optimizer step of all active clients: torch leaves slots without gradients alone."""
        held = [turn for turn in turns if self.link.holds(turn.slot)]
        self.tell_backward(tuple(turns))
        owned = [self.owned(turn.slot) for turn in held]
        self.guard_step(owned, [turn.client_id for turn in held], "client", cut_gradients)
        self.step("client")
        for turn in turns:
            self.steps_taken[turn.slot] += 1
        self.show([turn.slot for turn in turns], events.ClientStep.handler)
        self.emit(events.ClientStep, tuple(turns))

    def client_turn(self, work: Batch | Upload, replayed: int = 0) -> events.Turn:
        """Who is about to move in which slot."""
        half, private = self.slots[work.slot], self.private_server(work.slot)
        return events.Turn(work.slot, work.client_id, half, private, work.num_rows, replayed)

    # --- what a client holds ----------------------------------------------------------------------------------------

    def owned(self, slot: int) -> list[nn.Module]:
        """What the client in this slot holds and trains itself."""
        return [self.slots[slot], self.server_slots[slot]] if self.whole_on_client else [self.slots[slot]]

    @cached_property
    def owned_bytes(self) -> int:
        """Bytes of the weights that a client receives, and sends, in a round."""
        return sum(map(state_bytes, self.owned(0)))

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
