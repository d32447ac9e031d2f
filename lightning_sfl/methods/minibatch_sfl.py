"""MiniBatch-SFL: the server takes one step on the clients' joined batches, the giant mini-batch.

C. Huang, G. Tian, M. Tang, "When MiniBatch SGD Meets SplitFed Learning: Convergence Analysis and Performance
Evaluation", arXiv 2308.11953 (2023), equation 3.

    for each step e:  every client i uploads a batch of B_i rows
                      server: one step on the mean loss over all sum B rows
                      client i gets the gradient of its own mean loss, at the server half before the step
    client half <- weighted average;  server half: as trained

The paper synchronises every E iterations; here a round is what lies between two merges, so E is `local_steps` (batches,
passing on through the client's rows as often as needed) or `local_epochs` (passes; who is through sits the rest out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from lightning_sfl.core.cut import Reply, Upload, cloned, join, parts, raw_of, rows_of, scaled
from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Plan, plan_round, proportional_sizes
from lightning_sfl.core.state import untouched_buffers
from lightning_sfl.methods.base import SplitMethod


class MiniBatchSFL(SplitMethod):
    """One server step per local step, however many clients take part.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        client_gradient_scale: `local_mean`, the gradient of the client's own mean loss (1/B_i, the paper), or
            `concat_mean`, its slice of the joint gradient as it is (1/sum B).
        separate_forward: with `local_mean`, take each client's gradient from a forward of its rows alone through the
            server half, as the baseline in GAS's released code does, instead of rescaling its slice of the joint
            gradient; only batch normalisation and dropout can tell. The server learns from the joint forward only.
        batch_alloc: `equal`, batch_size rows per client, or `proportional`, B_i = max(1, floor(N_i / N of batch_size
            times n)) of the n participants' N rows; `weighting` must then be `rows`, which is B_i / sum B.
        kwargs: options of `SplitMethod`.
    """

    name = "minibatch_sfl"
    whole_loss = ""

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        client_gradient_scale: Literal["local_mean", "concat_mean"] = "local_mean",
        separate_forward: bool = False,
        batch_alloc: Literal["equal", "proportional"] = "equal",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        scales, allocations = ("local_mean", "concat_mean"), ("equal", "proportional")
        require(client_gradient_scale in scales, "client_gradient_scale", client_gradient_scale, f"one of {scales}")
        own = client_gradient_scale == "local_mean" or not separate_forward
        require(own, "separate_forward", True, "false where client_gradient_scale is concat_mean, the joint gradient's")
        require(batch_alloc in allocations, "batch_alloc", batch_alloc, f"one of {allocations}")
        if batch_alloc == "proportional":
            batches, by_rows = self.work.batch_size is not None, self.weighting == "rows"
            require(batches, "batch_size", None, "an integer >= 1 where batch_alloc is proportional")
            require(by_rows, "weighting", self.weighting, "rows where batch_alloc is proportional")
        self.client_gradient_scale, self.separate_forward = client_gradient_scale, separate_forward
        self.batch_alloc = batch_alloc
        self.whole_loss = "separate_forward looks at each client alone" if separate_forward else ""

    def plan(self, index: int) -> Plan:
        if self.batch_alloc == "equal":
            return super().plan(index)
        chosen = self.participants_of(index)
        rows = [self.population.rows[client] for client in chosen]
        sizes = proportional_sizes(self.work.batch_size or 1, [len(own) for own in rows])
        works = [replace(self.work, batch_size=size) for size in sizes]
        return plan_round(self.seed, index, chosen, rows, works, self.client_order)

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        answers = self.backward_server([uploads])
        if self.client_gradient_scale == "local_mean" and len(uploads) > 1:
            answers = [self.own_mean(answer, rows_of(uploads)) for answer in answers]
        self.step_server([self.server_turn(uploads)], raw_of(answers))
        return answers

    def own_mean(self, answer: Reply, joint_rows: int) -> Reply:
        """The gradient of the mean loss of a client's own rows."""
        upload = answer.upload
        return self.alone(upload) if self.separate_forward else scaled(answer, joint_rows / upload.num_rows)

    def alone(self, upload: Upload) -> Reply:
        """The same from these rows without the others'; the server half stays as it is."""
        received = join([upload])
        self.draw_from("server", upload)
        with untouched_buffers(self.server_half):
            logits = self.server_half(cloned(received))
            loss = self.loss(logits, upload.labels)
            *gradients, at_logits = torch.autograd.grad(loss, [*parts(received), logits], materialize_grads=True)
        return Reply(upload, tuple(gradients), tuple(gradients), logits.detach(), at_logits)
