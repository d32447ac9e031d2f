"""The server's side of a local step: what the server half does with the uploads that have come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.cut import Reply, Smashed, Upload, cloned, join, raw_of, replies, rows_of
from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.placed import PlacedModule


class ServerTurn(NamedTuple):
    """A step of one server half: which copy, on whose rows, how many."""

    branch: int
    client_ids: tuple[int, ...]
    num_rows: int
    half: nn.Module


class ServerSide(PlacedModule):
    """Forward, backward and step of server halves.

    Of the uploads of a step some may be in other processes, where a part of the same step is done on them: then the
    gradients of all parts, each of a share of the one mean loss, are added up before the step.
    """

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
        here = [[upload for upload in uploads if upload.here] for uploads in groups]
        served = [self.forward_server(*each) for each in zip(here, groups, strict=True)]
        self.forget_gradients(self.stepped["server"])
        losses = [loss for _, _, loss in filter(None, served)]
        if losses:
            self.walk_back(losses)
        if not self.server_copies:
            self.link.sum_gradients(self.stepped["server"])
        answers: dict[int, Reply] = {}
        for uploads, found in zip(here, served, strict=True):
            if found is not None:
                answers |= {id(reply.upload): reply for reply in replies(uploads, *found[:2])}
        return [answers.get(id(upload), Reply(upload, (), ())) for uploads in groups for upload in uploads]

    def forward_server(
        self, here: Sequence[Upload], uploads: Sequence[Upload]
    ) -> tuple[Smashed, Tensor, Tensor] | None:
        """Joined received data (leaves), logits and loss of those uploads of a group that are here; None without any.

        The loss is the mean over the rows that are here, times their share of the group.
        """
        if not here:
            self.tally.skip()
            return None
        received = join(here)
        labels = torch.cat([upload.labels for upload in here])
        self.draw_from("server", uploads[0])
        logits = self.server_logits(here, received)
        if self.looked_at(events.CutGradient.handler):
            logits.retain_grad()
        loss = self.observed_loss(logits, labels, [upload.client_id for upload in here], "server")
        return received, logits, loss if len(here) == len(uploads) else loss * (rows_of(here) / rows_of(uploads))

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
        if self.server_copies and self.link.in_parts:
            self.show([turn.branch for turn in stepped], events.ServerStep.handler)
        for turn in stepped:
            self.emit(events.ServerStep, *turn)

    def server_turn(self, turns: Sequence[Batch | Upload]) -> ServerTurn:
        """Who is about to move which server half."""
        branch = turns[0].slot if self.server_copies else 0
        clients = tuple(turn.client_id for turn in turns)
        return ServerTurn(branch, clients, sum(turn.num_rows for turn in turns), self.server_of(branch))
